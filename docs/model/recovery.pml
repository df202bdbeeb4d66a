/* The recovery protocol: who may run a task, who is dead, and what becomes of the dead one's task.
 *
 * Each step names the statement (queries/NAME.sql) or the function that it stands for. A step is atomic where the
 * code has one statement, one transaction, or no await. What is not a step of its own happens by not stepping: a
 * frozen process, a slow network and an operator that is away are actors that do not act while time passes.
 * README.md says what is left out, and what each macro NO_..., LATE_... takes out or adds.
 */

#ifndef TASKS
#define TASKS 1
#endif
#ifndef FAULTS
#define FAULTS 1        /* crashes, drains, lost messages, condemnations, outages, steps of the clock: all together */
#endif
#ifndef LEASE
#define LEASE 4         /* lease_seconds */
#endif
#ifndef MAXTICK
#define MAXTICK 1       /* `least(..., interval '2 seconds')` */
#endif
#ifndef ROWS
#define ROWS 2          /* rows in `workers` for one worker; one that nothing refers to is used again */
#endif
#ifndef RLIMIT
#define RLIMIT 2        /* attempts after which a loss or an error is the task's end: recoveryLimit, backoffLimit */
#endif
#ifndef MARGIN
#define MARGIN MAXTICK  /* model/lease.py, fence_after: the lease less the two seconds */
#endif
#ifndef BOUND
#define BOUND (LEASE + 2)
#endif
#define WORKERS 2
#define FENCE (LEASE - MARGIN)
#define FRESH (LEASE + 1)   /* a lease is ended when it is *less* than the witness: a unit later */
#define OWNER(r) ((r) / ROWS)
#define NOBODY 255

#ifdef NO_WITNESS
#define MAXGAP (LEASE + 1)  /* the database's clock itself: a gap counts in full */
#else
#define MAXGAP MAXTICK
#endif

mtype = { NONE, DOWN, STARTING, UP,                         /* a worker's process */
          REGISTER, REGISTERED, RENEW, RENEWED, REFUSED,    /* its lease connection: sent, answered */
          OPEN, CLAIMED,                                    /* its claim: seen, committed */
          FINISH, RETRY, LOST, SAVE,                        /* its other statements */
          QUEUED, RUNNING, WAITING, FINAL };                /* a task: no row yet, running, recovering or retrying */

/* Time. One unit passes at once for every clock (assumption 1), and events of one unit come in any order. */
byte gap = 0;                   /* clock_timestamp() - lease_clock.ticked_at, as far as it counts */
bool up = true;                 /* the database */
byte faults = 0, disturbed = 0; /* disturbed: outages and steps of the database's clock */
bool calm = false;              /* no more faults; whoever has something to do does it before time passes */
byte quiet = 0;                 /* units since then */

/* Rows of `workers`. `lease` is lease_expires_at - witnessed_at; 0 stands for "less than the witness". */
bool ended[WORKERS * ROWS] = true;
bool condemned[WORKERS * ROWS];
bool dead[WORKERS * ROWS];      /* the process is older than its container's end: process_started_at < finishedAt */
byte lease[WORKERS * ROWS];
byte served[WORKERS * ROWS];    /* ghost: units with the database up since the last renewal was applied */

/* Rows of `tasks`, and their queue jobs. */
mtype status[TASKS] = QUEUED;
byte attempt[TASKS];
byte holder[TASKS] = NOBODY;    /* tasks.worker_id */
byte waiting[TASKS] = 1;        /* queue jobs of this task that are available */

/* A worker: manager, executor, and what of theirs is under way. */
mtype process[WORKERS] = DOWN;
bool gone[WORKERS];             /* never restarted: its machine is lost */
byte row[WORKERS];              /* Incarnation.id */
byte deadline[WORKERS];         /* Incarnation.deadline - boot_time(), and the executors' kernel timers: pushed out
                                   together; an executor that was not told in time is one that crashed */
bool draining[WORKERS];
bool unsure[WORKERS];           /* _claim_until_stopping: the answer to a claim was lost */
byte runs[WORKERS];             /* the executor's task + 1 */
byte runs_attempt[WORKERS];
mtype renewal[WORKERS] = NONE;
byte renewal_row[WORKERS];
byte age[WORKERS];              /* boot_time() - sent */
byte late_renewal[WORKERS];     /* row + 1 of a renewal that the worker has given up and the database has not seen */
mtype claim[WORKERS] = NONE;
byte claim_row[WORKERS];
byte claim_task[WORKERS];
byte claim_attempt[WORKERS];
mtype statement[WORKERS] = NONE;
byte statement_row[WORKERS];
byte statement_task[WORKERS];
byte statement_attempt[WORKERS];

byte seen = 0;                  /* recover_orphans: task + 1 that an operator's first query saw as an orphan */

#ifdef LATE_CLAIM
byte late_claim[WORKERS];       /* row + 1 */
byte late_claim_task[WORKERS];
#endif
#ifdef LATE_REGISTER
byte late_register[WORKERS];    /* row + 1 */
#endif
#ifdef NO_PARENT_DEATH
byte orphan[WORKERS];           /* task + 1 of an executor whose manager is dead */
byte orphan_deadline[WORKERS];
#endif
#ifdef NO_STARTED_AT
bool terminated[WORKERS];       /* a container's end that the operator has yet to hear of */
#endif

#define FAULT (!calm && faults < FAULTS)
#define IS_FINAL(t) (status[t] == FINAL)
#define IS_ORPHAN(t) (status[t] == RUNNING && ended[holder[t]])
#define ALIVE(w) (deadline[w] > 0)                              /* Incarnation.alive */
#define OURS(w) (process[w] == UP && row[w] == statement_row[w])
#if TASKS == 1
#define ALL_FINAL IS_FINAL(0)
#define ANY_ORPHAN IS_ORPHAN(0)
#define ANY_WAITING (waiting[0] > 0)
#define HOLDS(r) (status[0] == RUNNING && holder[0] == (r))
#else
#define ALL_FINAL (IS_FINAL(0) && IS_FINAL(1))
#define ANY_ORPHAN (IS_ORPHAN(0) || IS_ORPHAN(1))
#define ANY_WAITING (waiting[0] > 0 || waiting[1] > 0)
#define HOLDS(r) ((status[0] == RUNNING && holder[0] == (r)) || (status[1] == RUNNING && holder[1] == (r)))
#endif
#ifdef LATE_CLAIM
#define LATE_CLAIM_OF(w, r) (late_claim[w] == (r) + 1)
#else
#define LATE_CLAIM_OF(w, r) false
#endif
#ifdef LATE_REGISTER
#define LATE_REGISTER_OF(w, r) (late_register[w] == (r) + 1)
#else
#define LATE_REGISTER_OF(w, r) false
#endif
/* Nothing refers to this row any more: it may stand for a new one. */
#define UNUSED(w, r) (ended[r] && !HOLDS(r) && !(statement[w] != NONE && statement_row[w] == (r)) \
    && !(claim[w] != NONE && claim_row[w] == (r)) && late_renewal[w] != (r) + 1 \
    && !LATE_CLAIM_OF(w, r) && !LATE_REGISTER_OF(w, r))
#if ROWS == 2
#define EACH_ROW(P) (P(0) || P(1) || P(2) || P(3))
#define ROW_OF(w, P) (P((w) * ROWS) || P((w) * ROWS + 1))
#else
#define EACH_ROW(P) (P(0) || P(1) || P(2) || P(3) || P(4) || P(5))
#define ROW_OF(w, P) (P((w) * ROWS) || P((w) * ROWS + 1) || P((w) * ROWS + 2))
#endif
#define RAN_OUT(r) (!ended[r] && lease[r] == 0)
#define EXPIRED EACH_ROW(RAN_OUT)
#define KNOWN_DEAD(r) (!ended[r] && dead[r])
#define ANY_DEAD EACH_ROW(KNOWN_DEAD)
#define STANDS(r) (!ended[r] && !condemned[r])
#define LIVE_ROW(w) ROW_OF(w, STANDS)
#ifdef NO_LEASE_CHECK
#define SEEN_AS_ORPHAN(t) (status[t] == RUNNING)
#else
#define SEEN_AS_ORPHAN(t) IS_ORPHAN(t)
#endif
#ifdef NO_ATTEMPT
#define SAME_ATTEMPT true
#else
#define SAME_ATTEMPT (attempt[t] == statement_attempt[w])
#endif
/* In a calm time this worker does something before time passes. */
#define BUSY(w) ((process[w] == DOWN && !gone[w]) || process[w] == STARTING || renewal[w] != NONE \
    || late_renewal[w] > 0 || claim[w] != NONE || statement[w] != NONE || runs[w] > 0 \
    || (process[w] == UP && (deadline[w] < FENCE || draining[w] || unsure[w] || ANY_WAITING)))
#define ANY_BUSY (BUSY(0) || BUSY(1) || gap > 0 || ANY_ORPHAN || seen > 0)

/* UPDATE lease_clock. */
inline tick() {
    for (i : 0 .. WORKERS * ROWS - 1) {
        if
        :: !ended[i] -> lease[i] = (lease[i] > gap -> lease[i] - gap : 0)
        :: else
        fi
    }
    gap = 0;
    i = 0
}

inline end_row(r) { ended[r] = true; condemned[r] = false; dead[r] = false; lease[r] = 0; served[r] = 0 }

inline end_all(w) {
    for (i : (w) * ROWS .. (w) * ROWS + ROWS - 1) {
        if
        :: !ended[i] -> end_row(i)
        :: else
        fi
    }
    i = 0
}

inline condemn(w) {
#ifdef POD_GONE_ENDS
    end_all(w)
#else
    for (i : (w) * ROWS .. (w) * ROWS + ROWS - 1) {
        if
        :: !ended[i] -> condemned[i] = true
        :: else
        fi
    }
    i = 0
#endif
}

/* register_worker: `superseded` and `registered`. */
inline apply_register(w, r) {
    tick();
    end_all(w);
    ended[r] = false; condemned[r] = false; dead[r] = false; lease[r] = FRESH; served[r] = 0
}

/* renew_lease. */
inline apply_renewal(r) {
#ifndef LAGGING_WITNESS
    tick();
#endif
    lease[r] = FRESH; served[r] = 0
}

/* end_orphaned_queue_jobs, insert_recovery_jobs, mark_recovering; or verdict() and end_orphans. */
inline recover(t) {
    if
    :: attempt[t] > RLIMIT -> status[t] = FINAL; holder[t] = NOBODY
#ifdef NO_UNIQUE
    :: else -> waiting[t]++; status[t] = WAITING; holder[t] = NOBODY
#else
    :: attempt[t] <= RLIMIT && waiting[t] == 0 -> waiting[t]++; status[t] = WAITING; holder[t] = NOBODY
    :: else     /* ON CONFLICT (unique_key) DO NOTHING: not marked either */
#endif
    fi;
    assert(waiting[t] <= 1)                                     /* property 3 */
}

/* The transaction of claims.py: judge(), start_tasks or resume_tasks; refuse_queue_jobs where that says no. */
inline commit_claim(w, r, t) {
    waiting[t]--;
    if
    :: status[t] == QUEUED || status[t] == WAITING ->
        status[t] = RUNNING; attempt[t]++; holder[t] = r
    :: else
    fi
}

inline stop_executor(w) { runs[w] = 0; runs_attempt[w] = 0 }

inline begin(w, t, a) {
    assert(runs[1 - (w)] != (t) + 1);                           /* property 1 */
#ifdef NO_PARENT_DEATH
    assert(orphan[0] != (t) + 1 && orphan[1] != (t) + 1);
#endif
    runs[w] = (t) + 1; runs_attempt[w] = a
}

inline say(w, kind, t, a) {
    statement[w] = kind; statement_row[w] = row[w]; statement_task[w] = t; statement_attempt[w] = a
}

inline said(w) { statement[w] = NONE; statement_row[w] = 0; statement_task[w] = 0; statement_attempt[w] = 0 }

/* finish_tasks, save_checkpoint, give_back with lock_own_tasks: the fence. */
inline apply_statement(w) {
    t = statement_task[w];
    if
    :: statement[w] == LOST && status[t] == RUNNING && attempt[t] == statement_attempt[w] &&
       holder[t] == statement_row[w] ->
        recover(t)
    :: statement[w] != LOST && status[t] == RUNNING && SAME_ATTEMPT && holder[t] == statement_row[w] &&
       !ended[statement_row[w]] ->
        assert(statement_attempt[w] == attempt[t]);             /* property 4 */
        if
        :: statement[w] == FINISH -> status[t] = FINAL; holder[t] = NOBODY
        :: statement[w] == RETRY -> status[t] = WAITING; holder[t] = NOBODY; waiting[t]++; assert(waiting[t] <= 1)
        :: else
        fi
    :: else
    fi;
    t = 0
}

inline no_renewal(w) { renewal[w] = NONE; renewal_row[w] = 0; age[w] = 0 }

inline no_claim(w) { claim[w] = NONE; claim_row[w] = 0; claim_task[w] = 0; claim_attempt[w] = 0 }

proctype Worker(byte w) {
    byte i;
end:
    do
    /* -- incarnation.py, serving.py ------------------------------------------------------------------------- */
    :: d_step { process[w] == DOWN && !gone[w] -> process[w] = STARTING }
    :: d_step { process[w] == STARTING && renewal[w] == NONE && UNUSED(w, w * ROWS) ->          /* register: sent */
            renewal[w] = REGISTER; renewal_row[w] = w * ROWS }
    :: d_step { process[w] == STARTING && renewal[w] == NONE && UNUSED(w, w * ROWS + 1) && !UNUSED(w, w * ROWS) ->
            renewal[w] = REGISTER; renewal_row[w] = w * ROWS + 1 }
#if ROWS > 2
    :: d_step { process[w] == STARTING && renewal[w] == NONE && UNUSED(w, w * ROWS + 2) && !UNUSED(w, w * ROWS + 1) &&
                !UNUSED(w, w * ROWS) ->
            renewal[w] = REGISTER; renewal_row[w] = w * ROWS + 2 }
#endif
    :: d_step { renewal[w] == REGISTERED ->                     /* register: answered; _push_out */
#ifdef DEADLINE_AFTER_REPLY
            deadline[w] = FENCE;
#else
            deadline[w] = FENCE - age[w];
#endif
            process[w] = UP; row[w] = renewal_row[w]; no_renewal(w) }
    :: d_step { process[w] == UP && renewal[w] == NONE && deadline[w] < FENCE && !draining[w] ->    /* _renew: sent */
            renewal[w] = RENEW; renewal_row[w] = row[w] }
    :: d_step { renewal[w] == RENEWED && ALIVE(w) ->            /* _renew: answered; _push_out, _pass_on_renewals */
#ifdef DEADLINE_AFTER_REPLY
            deadline[w] = FENCE;
#else
            deadline[w] = FENCE - age[w];
#endif
            no_renewal(w) }
    /* Over: refused, answered too late, or watch_deadline. Leaving pool() kills the executors; a condemned
       incarnation may then say goodbye: end_condemned_worker. */
    :: d_step { process[w] == UP && (!ALIVE(w) || renewal[w] == REFUSED) ->
            stop_executor(w); no_renewal(w); deadline[w] = 0; draining[w] = false; unsure[w] = false;
            process[w] = STARTING;
            if
            :: up && condemned[row[w]] && !ended[row[w]] -> end_row(row[w])
            :: else
            fi;
            row[w] = 0 }
    /* -- manager.py, claims.py ------------------------------------------------------------------------------ */
    /* claim_queue_jobs: the statement's snapshot has the worker alive. It commits later, whatever happened since. */
    :: d_step { process[w] == UP && up && !draining[w] && ALIVE(w) && claim[w] == NONE && !unsure[w] && runs[w] == 0 &&
                !ended[row[w]] && !condemned[row[w]] && waiting[0] > 0 ->
            claim[w] = OPEN; claim_row[w] = row[w]; claim_task[w] = 0 }
#if TASKS > 1
    :: d_step { process[w] == UP && up && !draining[w] && ALIVE(w) && claim[w] == NONE && !unsure[w] && runs[w] == 0 &&
                !ended[row[w]] && !condemned[row[w]] && waiting[1] > 0 ->
            claim[w] = OPEN; claim_row[w] = row[w]; claim_task[w] = 1 }
#endif
    /* Its answer: _execute hands the attempt over while the lease has time; else Over comes. */
    :: d_step { claim[w] == CLAIMED && process[w] == UP && row[w] == claim_row[w] ->
            if
            :: ALIVE(w) -> begin(w, claim_task[w], claim_attempt[w])
            :: else
            fi;
            no_claim(w) }
    /* A claim of an incarnation that is over: nobody hears the answer, or it never commits. */
    :: d_step { claim[w] != NONE && !(process[w] == UP && row[w] == claim_row[w]) -> no_claim(w) }
    /* _give_back_unknown: unknown_tasks, then give_back. */
    :: d_step { process[w] == UP && up && unsure[w] && statement[w] == NONE ->
            for (i : 0 .. TASKS - 1) {
                if
                :: status[i] == RUNNING && holder[i] == row[w] && runs[w] != i + 1 -> recover(i)
                :: else
                fi
            }
            i = 0;
            unsure[w] = false }
    /* _work, conclude: the executor has ended its attempt, well or to be tried again. */
    :: d_step { runs[w] > 0 && process[w] == UP && statement[w] == NONE ->
            say(w, FINISH, runs[w] - 1, runs_attempt[w]); stop_executor(w) }
    :: d_step { runs[w] > 0 && process[w] == UP && statement[w] == NONE && runs_attempt[w] <= RLIMIT ->
            say(w, RETRY, runs[w] - 1, runs_attempt[w]); stop_executor(w) }
#ifdef CHECKPOINTS
    :: d_step { !calm && runs[w] > 0 && process[w] == UP && statement[w] == NONE ->             /* _checkpoint */
            say(w, SAVE, runs[w] - 1, runs_attempt[w]) }
#endif
    /* Statements are sent again until they are answered, but not by an incarnation that is over. */
    :: d_step { statement[w] != NONE && !OURS(w) -> said(w) }
    /* _drain: kill_all, and what was left is given back; then end_worker. */
    :: d_step { FAULT && process[w] == UP && !draining[w] && claim[w] == NONE && statement[w] == NONE ->
            faults++; draining[w] = true;
            if
            :: runs[w] > 0 -> say(w, LOST, runs[w] - 1, runs_attempt[w])
            :: else
            fi;
            stop_executor(w) }
    :: d_step { draining[w] && process[w] == UP && up && statement[w] == NONE && claim[w] == NONE ->
            if
            :: !ended[row[w]] -> end_row(row[w])
            :: else
            fi;
            no_renewal(w); row[w] = 0; deadline[w] = 0; draining[w] = false; unsure[w] = false; process[w] = DOWN }
    /* -- faults --------------------------------------------------------------------------------------------- */
    /* The executor crashes: the zygote buries it, and the manager gives the attempt back (executor_exited). */
    :: d_step { FAULT && runs[w] > 0 && process[w] == UP && statement[w] == NONE ->
            faults++; say(w, LOST, runs[w] - 1, runs_attempt[w]); stop_executor(w) }
    /* The manager crashes: PR_SET_PDEATHSIG ends the zygote and the executors. Or its container ends. */
    :: d_step { FAULT && process[w] == UP ->
            faults++;
#ifdef NO_PARENT_DEATH
            orphan[w] = runs[w]; orphan_deadline[w] = deadline[w];
#endif
#ifdef NO_STARTED_AT
            terminated[w] = true;
#endif
            stop_executor(w); no_renewal(w);
            dead[row[w]] = !ended[row[w]]; row[w] = 0;
            deadline[w] = 0; draining[w] = false; unsure[w] = false; process[w] = DOWN }
    :: d_step { FAULT && process[w] == DOWN && !gone[w] && !gone[1 - w] -> faults++; gone[w] = true }
    /* The network loses a request or an answer, or the answer comes after the bound (asyncio.timeout in _renew). */
    :: d_step { FAULT && (renewal[w] == REGISTERED || renewal[w] == RENEWED || renewal[w] == REFUSED) ->
            faults++; no_renewal(w) }
    :: d_step { FAULT && renewal[w] == RENEW && late_renewal[w] == 0 ->
            faults++; late_renewal[w] = renewal_row[w] + 1; no_renewal(w) }
#ifdef LATE_REGISTER
    :: d_step { FAULT && renewal[w] == REGISTER && late_register[w] == 0 ->
            faults++; late_register[w] = renewal_row[w] + 1; no_renewal(w) }
#endif
    :: d_step { FAULT && claim[w] != NONE && process[w] == UP && row[w] == claim_row[w] ->
            faults++;
#ifdef LATE_CLAIM
            if
            :: claim[w] == OPEN && late_claim[w] == 0 ->
                late_claim[w] = claim_row[w] + 1; late_claim_task[w] = claim_task[w]
            :: else
            fi;
#endif
            no_claim(w); unsure[w] = true }
    od
}

/* What the database does with the statements of a worker, when they reach it. */
proctype Database(byte w) {
    byte i, t;
end:
    do
    :: d_step { up && renewal[w] == REGISTER ->                                                 /* register_worker */
            apply_register(w, renewal_row[w]); renewal[w] = REGISTERED }
    :: d_step { up && renewal[w] == RENEW ->                                                    /* renew_lease */
            if
            :: !ended[renewal_row[w]] && !condemned[renewal_row[w]] ->
                apply_renewal(renewal_row[w]); renewal[w] = RENEWED
            :: else -> renewal[w] = REFUSED
            fi }
    :: d_step { up && late_renewal[w] > 0 ->
            if
            :: !ended[late_renewal[w] - 1] && !condemned[late_renewal[w] - 1] -> apply_renewal(late_renewal[w] - 1)
            :: else
            fi;
            late_renewal[w] = 0 }
    :: d_step { up && claim[w] == OPEN ->                       /* FOR UPDATE SKIP LOCKED; COMMIT */
            if
            :: waiting[claim_task[w]] > 0 ->
                commit_claim(w, claim_row[w], claim_task[w]);
                if
                :: status[claim_task[w]] == RUNNING && holder[claim_task[w]] == claim_row[w] ->
                    claim[w] = CLAIMED; claim_attempt[w] = attempt[claim_task[w]]
                :: else -> no_claim(w)
                fi
            :: else -> no_claim(w)
            fi }
#ifdef LATE_REGISTER
    :: d_step { up && late_register[w] > 0 ->
            apply_register(w, late_register[w] - 1); late_register[w] = 0 }
#endif
#ifdef LATE_CLAIM
    :: d_step { up && late_claim[w] > 0 ->
            if
            :: waiting[late_claim_task[w]] > 0 -> commit_claim(w, late_claim[w] - 1, late_claim_task[w])
            :: else
            fi;
            late_claim[w] = 0; late_claim_task[w] = 0 }
#endif
    /* Answered; or the answer is lost, and Finisher, _give_back or _checkpoint sends it again. */
    :: d_step { up && statement[w] != NONE -> apply_statement(w); said(w) }
    :: d_step { FAULT && up && statement[w] != NONE && OURS(w) -> faults++; apply_statement(w) }
    od
}

/* Operators. They keep nothing in memory but what a first query saw, so a crash is no more than not acting. */
proctype Operator() {
    byte i;
end:
    do
    /* tick_and_end_expired */
    :: d_step { up && (gap > 0 || EXPIRED) ->
            tick();
            for (i : 0 .. WORKERS * ROWS - 1) {
                if
                :: !ended[i] && lease[i] == 0 ->
                    assert(served[i] + disturbed * MAXTICK > LEASE);                    /* property 5 */
                    end_row(i)
                :: else
                fi
            }
            i = 0 }
    /* recover_orphans: lock_orphans, whose snapshot may be old when it gets the lock ... */
    :: d_step { up && seen == 0 && SEEN_AS_ORPHAN(0) -> seen = 1 }
#if TASKS > 1
    :: d_step { up && seen == 0 && SEEN_AS_ORPHAN(1) -> seen = 2 }
#endif
    /* ... then, with the lock, read_orphans and the rest. */
    :: d_step { up && seen > 0 ->
            if
#ifdef NO_RECHECK
            :: status[seen - 1] == RUNNING -> recover(seen - 1)
#elif defined(NO_UNIQUE)
            :: !IS_FINAL(seen - 1) -> recover(seen - 1)
#elif defined(NO_LEASE_CHECK)
            :: status[seen - 1] == RUNNING -> recover(seen - 1)
#else
            :: IS_ORPHAN(seen - 1) -> recover(seen - 1)
#endif
            :: else
            fi;
            seen = 0 }
    :: d_step { !calm && seen > 0 -> seen = 0 }                                         /* a crash in between */
    /* Another operator does both at once. */
    :: d_step { up && IS_ORPHAN(0) -> recover(0) }
#if TASKS > 1
    :: d_step { up && IS_ORPHAN(1) -> recover(1) }
#endif
    /* end_workers_of_containers: `container_terminated` */
    :: d_step { up && ANY_DEAD ->
            for (i : 0 .. WORKERS * ROWS - 1) {
                if
                :: dead[i] && !ended[i] -> end_row(i)
                :: else
                fi
            }
            i = 0 }
#ifdef NO_STARTED_AT
    :: d_step { up && terminated[0] -> terminated[0] = false; end_all(0) }
    :: d_step { up && terminated[1] -> terminated[1] = false; end_all(1) }
#endif
    /* condemn_workers_of_pods: `pod_gone`, whether its processes run or not */
    :: d_step { FAULT && up && LIVE_ROW(0) -> faults++; condemn(0) }
    :: d_step { FAULT && up && LIVE_ROW(1) -> faults++; condemn(1) }
    od
}

proctype Time() {
    byte i;
end:
    do
    :: d_step { !(calm && (ALL_FINAL || ANY_BUSY)) && !(calm && quiet > BOUND) ->
            if
            :: calm -> quiet++; assert(quiet <= BOUND)                                  /* property 2 */
            :: else
            fi;
            for (i : 0 .. WORKERS - 1) {
                if
#ifdef NO_FENCE
                :: deadline[i] == 0
#else
                :: deadline[i] == 0 -> stop_executor(i)         /* fence.py: the kernel, whatever the manager does */
#endif
                :: else -> deadline[i]--
                fi;
#ifdef NO_PARENT_DEATH
                if
                :: orphan_deadline[i] == 0 -> orphan[i] = 0
                :: else -> orphan_deadline[i]--
                fi;
#endif
                if
                :: renewal[i] != NONE && age[i] < FENCE -> age[i]++
                :: else
                fi
            }
            for (i : 0 .. WORKERS * ROWS - 1) {
                if
                :: up && !ended[i] && served[i] <= LEASE -> served[i]++
                :: else
                fi
            }
            i = 0;
            gap = (gap < MAXGAP -> gap + 1 : gap) }
    :: d_step { FAULT && up -> faults++; disturbed++; up = false }      /* an outage, of any length */
    :: d_step { !up -> up = true }
    :: d_step { FAULT && up && gap < MAXGAP -> faults++; disturbed++; gap = MAXGAP }    /* the clock is stepped */
    :: d_step { !calm && up && !(gone[0] && gone[1]) -> calm = true }
    od
}

init {
    atomic {
        gap = 0;
        run Worker(0); run Worker(1); run Database(0); run Database(1); run Operator(); run Time()
    }
}
