/* The recovery protocol: who may run a task, who is dead, and what becomes of the dead one's task.
 *
 * Each step names the statement (queries/NAME.sql) or the function that it stands for. A step is atomic where the
 * code has one statement, one transaction, or no await. Events of one unit of time come in any order; before the
 * next unit everything has been done that is due, but for what a fault holds up: a frozen manager, a slow network, a
 * database or operators that are away. How long that lasts is open; how many faults there are is bounded.
 * README.md says what is left out, and what each macro NO_..., LATE_... takes out or adds.
 */

#ifndef TASKS
#define TASKS 1
#endif
#ifndef FAULTS
#define FAULTS 2        /* crashes, drains, lost messages, condemnations, outages, steps of the clock: all together */
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
#define BOUND (LEASE + 1)
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

/* Time. One unit passes at once for every clock: they advance at the same rate. */
byte gap = 0;                   /* clock_timestamp() - lease_clock.ticked_at, as far as it counts */
bool up = true;                 /* the database */
byte faults = 0;
byte disturbed = 0;             /* ghost: outages, and steps of the database's clock */
bool stepped = false;           /* that clock has been set forward */
bool away = false;              /* all operators */
bool calm = false;              /* no more faults, and nothing is held up any more */
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
bool fresh[WORKERS];            /* renewed in this unit: renew_every is one */
bool frozen[WORKERS];           /* the manager; executors go on */
bool draining[WORKERS];
bool unsure[WORKERS];           /* _claim_until_stopping: the answer to a claim was lost */
byte runs[WORKERS];             /* the executor's task + 1 */
byte runs_attempt[WORKERS];
bool saved[WORKERS];            /* one checkpoint is enough */
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
bool slow[WORKERS];             /* the statement is on its way for units */

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

#define FAULT (faults < FAULTS)
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
#define NO_LATE_CLAIM(r) (late_claim[OWNER(r)] != (r) + 1)
#else
#define NO_LATE_CLAIM(r) true
#endif
#ifdef LATE_REGISTER
#define NO_LATE_REGISTER(r) (late_register[OWNER(r)] != (r) + 1)
#else
#define NO_LATE_REGISTER(r) true
#endif
/* Nothing refers to this row any more: it may stand for a new one. */
#define UNUSED(r) (ended[r] && !HOLDS(r) && !(statement[OWNER(r)] != NONE && statement_row[OWNER(r)] == (r)) \
    && !(claim[OWNER(r)] != NONE && claim_row[OWNER(r)] == (r)) && late_renewal[OWNER(r)] != (r) + 1 \
    && NO_LATE_CLAIM(r) && NO_LATE_REGISTER(r))
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
#define AT_WORK(w) (!frozen[w])
#define RENEWS(w) (renewal[w] == NONE && !fresh[w])
#define CLAIMS(w) (process[w] == UP && row[w] == claim_row[w])
#define CAN_CLAIM(w) (process[w] == UP && AT_WORK(w) && up && !draining[w] && ALIVE(w) && claim[w] == NONE && \
    !unsure[w] && runs[w] == 0 && STANDS(row[w]))
#define UNKNOWN_TASK(w, t) (status[t] == RUNNING && holder[t] == row[w] && runs[w] != (t) + 1)
#if TASKS == 1
#define HOLDS_UNKNOWN(w) UNKNOWN_TASK(w, 0)
#else
#define HOLDS_UNKNOWN(w) (UNKNOWN_TASK(w, 0) || UNKNOWN_TASK(w, 1))
#endif
#ifdef LOOK_AGAIN
#define GIVES_BACK(w) (statement[w] == NONE && claim[w] == NONE && (unsure[w] || HOLDS_UNKNOWN(w)))
#else
#define GIVES_BACK(w) (statement[w] == NONE && unsure[w])
#endif
#define LEAVES(w) (draining[w] && statement[w] == NONE && claim[w] == NONE)
/* What is done before time passes: everything, but what is frozen, slow, or lasts. In a calm time that is nothing. */
#define BUSY(w) ((process[w] == DOWN && !gone[w]) \
    || (process[w] == STARTING && AT_WORK(w) && up && renewal[w] == NONE) \
    || (process[w] == UP && AT_WORK(w) && (!ALIVE(w) || renewal[w] == REFUSED || \
        (up && (RENEWS(w) || GIVES_BACK(w) || LEAVES(w) || (CAN_CLAIM(w) && ANY_WAITING))))) \
    || (up && statement[w] != NONE && !slow[w]) \
    || (calm && (frozen[w] || renewal[w] != NONE || late_renewal[w] > 0 || claim[w] != NONE || statement[w] != NONE \
        || runs[w] > 0)))
#define OPERATORS_BUSY (up && !away && (gap > 0 || ANY_ORPHAN || seen > 0 || EXPIRED))
#define ANY_BUSY (BUSY(0) || BUSY(1) || OPERATORS_BUSY)

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
    :: else -> waiting[t] = 1; status[t] = WAITING; holder[t] = NOBODY     /* ON CONFLICT (unique_key): adopted */
#endif
    fi;
    assert(waiting[t] <= 1)                                     /* property 3: one recovery job */
}

/* claim_queue_jobs: the statement's snapshot has the worker alive. It may commit later, whatever happened since. */
inline open_claim(w, t) { claim[w] = OPEN; claim_row[w] = row[w]; claim_task[w] = t }

/* The transaction of claims.py: judge(), start_tasks or resume_tasks; refuse_queue_jobs where that says no. */
inline commit_claim(w) {
    t = claim_task[w];
    if
    :: waiting[t] > 0 && (status[t] == QUEUED || status[t] == WAITING) ->
        waiting[t]--; status[t] = RUNNING; attempt[t]++; holder[t] = claim_row[w];
        claim[w] = CLAIMED; claim_attempt[w] = attempt[t]
    :: waiting[t] > 0 && (status[t] == RUNNING || status[t] == FINAL) -> waiting[t]--; no_claim(w)
    :: else -> no_claim(w)          /* FOR UPDATE SKIP LOCKED: another took it */
    fi;
    t = 0
}

inline hand_over(w) {
    if
    :: claim[w] == CLAIMED && ALIVE(w) -> begin(w, claim_task[w], claim_attempt[w])
    :: else                         /* nothing is handed over after the deadline */
    fi;
    no_claim(w)
}

inline give_back_unknown(w) {
    for (i : 0 .. TASKS - 1) {
        if
        :: status[i] == RUNNING && holder[i] == row[w] && runs[w] != i + 1 -> recover(i)
        :: else
        fi
    }
    i = 0
}

inline choose_row(w) {
    if
    :: UNUSED(w * ROWS) -> renewal_row[w] = w * ROWS
    :: else ->
        if
        :: UNUSED(w * ROWS + 1) -> renewal_row[w] = w * ROWS + 1
        :: else -> renewal_row[w] = w * ROWS + ROWS - 1
        fi
    fi
}

/* _push_out, and _pass_on_renewals. */
inline renewed(w) {
#ifdef DEADLINE_AFTER_REPLY
    deadline[w] = FENCE;
#else
    deadline[w] = FENCE - age[w];
#endif
    fresh[w] = true;
    no_renewal(w)
}

inline registered(w) { process[w] = UP; row[w] = renewal_row[w]; renewed(w) }

/* The incarnation is no more, nor is any executor of its. */
inline over(w) {
    stop_executor(w); no_renewal(w);
    row[w] = 0; deadline[w] = 0; fresh[w] = false; draining[w] = false; unsure[w] = false
}

inline stop_executor(w) { runs[w] = 0; runs_attempt[w] = 0; saved[w] = false }

inline begin(w, t, a) {
    assert(runs[1 - (w)] != (t) + 1);                           /* property 1: no overlap */
#ifdef NO_PARENT_DEATH
    assert(orphan[0] != (t) + 1 && orphan[1] != (t) + 1);
#endif
    runs[w] = (t) + 1; runs_attempt[w] = a
}

inline say(w, kind, t, a) {
    statement[w] = kind; statement_row[w] = row[w]; statement_task[w] = t; statement_attempt[w] = a
}

inline said(w) {
    statement[w] = NONE; statement_row[w] = 0; statement_task[w] = 0; statement_attempt[w] = 0; slow[w] = false
}

/* finish_tasks, save_checkpoint, give_back with lock_own_tasks: the fence. */
inline apply_statement(w) {
    t = statement_task[w];
    if
    :: statement[w] == LOST && status[t] == RUNNING && attempt[t] == statement_attempt[w] &&
       holder[t] == statement_row[w] ->
        recover(t)
    :: statement[w] != LOST && status[t] == RUNNING && SAME_ATTEMPT && holder[t] == statement_row[w] &&
       !ended[statement_row[w]] ->
        assert(statement_attempt[w] == attempt[t]);             /* property 4: no stale write */
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

active [WORKERS] proctype Worker() {
    byte w = _pid, i, t;
end:
    do
    /* -- incarnation.py, serving.py ------------------------------------------------------------------------- */
    :: d_step { process[w] == DOWN && !gone[w] && renewal[w] == NONE -> process[w] = STARTING }
    :: d_step { process[w] == STARTING && AT_WORK(w) && up && renewal[w] == NONE && ROW_OF(w, UNUSED) ->
            /* register */
            choose_row(w); apply_register(w, renewal_row[w]); registered(w) }
    :: d_step { FAULT && process[w] == STARTING && AT_WORK(w) && renewal[w] == NONE && ROW_OF(w, UNUSED) ->
            faults++; choose_row(w); renewal[w] = REGISTER }                            /* slowly, as below */
    :: d_step { renewal[w] == REGISTERED && AT_WORK(w) -> registered(w) }
    :: d_step { process[w] == UP && AT_WORK(w) && up && RENEWS(w) && ALIVE(w) ->             /* _renew */
            renewal_row[w] = row[w];
            if
            :: STANDS(row[w]) -> apply_renewal(row[w]); renewed(w)
            :: else -> renewal[w] = REFUSED
            fi }
    :: d_step { FAULT && process[w] == UP && AT_WORK(w) && RENEWS(w) && ALIVE(w) ->
            faults++; renewal_row[w] = row[w]; renewal[w] = RENEW }
    :: d_step { renewal[w] == RENEWED && AT_WORK(w) && ALIVE(w) -> renewed(w) }
    /* Over: refused, answered too late, or watch_deadline. Leaving pool() kills the executors; a condemned
       incarnation then says goodbye if the database is there: end_condemned_worker. */
    :: d_step { process[w] == UP && AT_WORK(w) && (!ALIVE(w) || renewal[w] == REFUSED) ->
            if
            :: up && condemned[row[w]] && !ended[row[w]] -> end_row(row[w])
            :: else
            fi;
            over(w); process[w] = STARTING }
    /* -- manager.py, claims.py ------------------------------------------------------------------------------ */
    /* One transaction, and its answer: _execute hands the attempt over while the lease has time. */
    :: d_step { CAN_CLAIM(w) && waiting[0] > 0 -> open_claim(w, 0); commit_claim(w); hand_over(w) }
    :: d_step { FAULT && CAN_CLAIM(w) && waiting[0] > 0 -> faults++; open_claim(w, 0) }
#if TASKS > 1
    :: d_step { CAN_CLAIM(w) && waiting[1] > 0 -> open_claim(w, 1); commit_claim(w); hand_over(w) }
    :: d_step { FAULT && CAN_CLAIM(w) && waiting[1] > 0 -> faults++; open_claim(w, 1) }
#endif
    :: d_step { claim[w] == CLAIMED && CLAIMS(w) && AT_WORK(w) -> hand_over(w) }
    /* _give_back_unknown: unknown_tasks, then give_back. */
    :: d_step { process[w] == UP && AT_WORK(w) && up && GIVES_BACK(w) -> give_back_unknown(w); unsure[w] = false }
    /* _work, conclude: the executor has ended its attempt, well or to be tried again. */
    :: d_step { runs[w] > 0 && process[w] == UP && AT_WORK(w) && statement[w] == NONE ->
            say(w, FINISH, runs[w] - 1, runs_attempt[w]); stop_executor(w) }
    :: d_step { runs[w] > 0 && process[w] == UP && AT_WORK(w) && statement[w] == NONE && runs_attempt[w] <= RLIMIT ->
            say(w, RETRY, runs[w] - 1, runs_attempt[w]); stop_executor(w) }
    :: d_step { !calm && runs[w] > 0 && process[w] == UP && AT_WORK(w) && statement[w] == NONE && !saved[w] ->
            say(w, SAVE, runs[w] - 1, runs_attempt[w]); saved[w] = true }                           /* _checkpoint */
    /* _drain: kill_all, and what was left is given back; then end_worker. */
    :: d_step { FAULT && process[w] == UP && AT_WORK(w) && !draining[w] && claim[w] == NONE && statement[w] == NONE ->
            faults++; draining[w] = true;
            if
            :: runs[w] > 0 -> say(w, LOST, runs[w] - 1, runs_attempt[w])
            :: else
            fi;
            stop_executor(w) }
    :: d_step { process[w] == UP && AT_WORK(w) && up && LEAVES(w) ->
            if
            :: !ended[row[w]] -> end_row(row[w])
            :: else
            fi;
            over(w); process[w] = DOWN }
    /* -- what is on its way ---------------------------------------------------------------------------------- */
    :: d_step { up && renewal[w] == REGISTER -> apply_register(w, renewal_row[w]); renewal[w] = REGISTERED }
    :: d_step { up && renewal[w] == RENEW ->
            if
            :: STANDS(renewal_row[w]) -> apply_renewal(renewal_row[w]); renewal[w] = RENEWED
            :: else -> renewal[w] = REFUSED
            fi }
    :: d_step { up && claim[w] == OPEN -> commit_claim(w) }
    /* The statement is applied and answered; or it is applied and the answer is lost, so that Finisher, _give_back
       or _checkpoint sends it again; or it is slow: the same step, later. */
    :: d_step { up && statement[w] != NONE -> apply_statement(w); said(w) }
    :: d_step { FAULT && up && statement[w] != NONE && OURS(w) -> faults++; apply_statement(w) }
    :: d_step { FAULT && statement[w] != NONE && !slow[w] -> faults++; slow[w] = true }
    /* What is lost: a request, or its answer; or the bound on a renewal is over (asyncio.timeout in _renew), and it
       may reach the database all the same. Whoever is over hears no answer, and a statement of his may be lost. */
    :: d_step { renewal[w] == REGISTER || renewal[w] == REGISTERED ->
#ifdef LATE_REGISTER
            if
            :: renewal[w] == REGISTER && late_register[w] == 0 -> late_register[w] = renewal_row[w] + 1
            :: else
            fi;
#endif
            no_renewal(w) }
    :: d_step { renewal[w] == RENEWED -> no_renewal(w) }
    :: d_step { renewal[w] == RENEW ->
            if
            :: late_renewal[w] == 0 -> late_renewal[w] = renewal_row[w] + 1
            :: else
            fi;
            no_renewal(w) }
    :: d_step { up && late_renewal[w] > 0 ->
            if
            :: STANDS(late_renewal[w] - 1) -> apply_renewal(late_renewal[w] - 1)
            :: else
            fi;
            late_renewal[w] = 0 }
    :: d_step { claim[w] != NONE && !CLAIMS(w) -> no_claim(w) }
    :: d_step { !calm && claim[w] != NONE && CLAIMS(w) ->
#ifdef LATE_CLAIM
            if
            :: claim[w] == OPEN && late_claim[w] == 0 ->
                late_claim[w] = claim_row[w] + 1; late_claim_task[w] = claim_task[w]
            :: else
            fi;
#endif
            no_claim(w); unsure[w] = true }
    :: d_step { statement[w] != NONE && !OURS(w) -> said(w) }
#ifdef LATE_REGISTER
    :: d_step { up && late_register[w] > 0 ->
#ifdef ORDERED_REGISTER
            if      /* it ends no row that is newer than itself */
            :: process[w] == UP
            :: else -> apply_register(w, late_register[w] - 1)
            fi;
#else
            apply_register(w, late_register[w] - 1);
#endif
            late_register[w] = 0 }
#endif
#ifdef LATE_CLAIM
    :: d_step { up && late_claim[w] > 0 && claim[w] == NONE ->
            claim_row[w] = late_claim[w] - 1; claim_task[w] = late_claim_task[w]; commit_claim(w);
            no_claim(w); late_claim[w] = 0; late_claim_task[w] = 0 }
#endif
    /* -- faults --------------------------------------------------------------------------------------------- */
    :: d_step { FAULT && process[w] != DOWN && !frozen[w] -> faults++; frozen[w] = true }     /* SIGSTOP, no CPU */
    :: d_step { frozen[w] -> frozen[w] = false }
    /* The executor crashes: the zygote buries it, and the manager gives the attempt back (executor_exited). */
    :: d_step { FAULT && runs[w] > 0 && process[w] == UP && statement[w] == NONE ->
            faults++; say(w, LOST, runs[w] - 1, runs_attempt[w]); stop_executor(w) }
    /* The manager crashes: PR_SET_PDEATHSIG ends the zygote and the executors. Or its container ends. */
    :: d_step { FAULT && process[w] != DOWN ->
            faults++; frozen[w] = false;
#ifdef NO_PARENT_DEATH
            orphan[w] = runs[w]; orphan_deadline[w] = deadline[w];
#endif
#ifdef NO_STARTED_AT
            terminated[w] = true;
#endif
#ifdef LATE_REGISTER
            if
            :: renewal[w] == REGISTER && late_register[w] == 0 -> late_register[w] = renewal_row[w] + 1
            :: else
            fi;
#endif
            if
            :: process[w] == UP -> dead[row[w]] = !ended[row[w]]
            :: else
            fi;
            over(w); process[w] = DOWN }
    :: d_step { !calm && process[w] == DOWN && !gone[w] && !gone[1 - w] && faults > 0 ->    /* with its machine */
            gone[w] = true }
    od
}

/* Operators. They keep nothing in memory but what a first query saw, so a crash is no more than not acting. */
active proctype Operator() {
    byte i;
end:
    do
    /* tick_and_end_expired */
    :: d_step { up && !away && (gap > 0 || EXPIRED) ->
            tick();
            for (i : 0 .. WORKERS * ROWS - 1) {
                if
                :: !ended[i] && lease[i] == 0 ->
                    assert(served[i] + disturbed * MAXTICK > LEASE);                  /* property 5: no needless end */
                    end_row(i)
                :: else
                fi
            }
            i = 0 }
    /* recover_orphans: lock_orphans, whose snapshot may be old when it gets the lock ... */
    :: d_step { up && !away && seen == 0 && SEEN_AS_ORPHAN(0) -> seen = 1 }
#if TASKS > 1
    :: d_step { up && !away && seen == 0 && SEEN_AS_ORPHAN(1) -> seen = 2 }
#endif
    /* ... then, with the lock, read_orphans and the rest. */
    :: d_step { up && !away && seen > 0 ->
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
    :: d_step { FAULT && seen > 0 -> faults++; seen = 0 }                               /* a crash in between */
    /* Another operator does both at once. */
    :: d_step { up && !away && IS_ORPHAN(0) -> recover(0) }
#if TASKS > 1
    :: d_step { up && !away && IS_ORPHAN(1) -> recover(1) }
#endif
    /* end_workers_of_containers: `container_terminated` */
    :: d_step { up && !away && ANY_DEAD ->
            for (i : 0 .. WORKERS * ROWS - 1) {
                if
                :: dead[i] && !ended[i] -> end_row(i)
                :: else
                fi
            }
            i = 0 }
#ifdef NO_STARTED_AT
    :: d_step { up && !away && terminated[0] -> terminated[0] = false; end_all(0) }
    :: d_step { up && !away && terminated[1] -> terminated[1] = false; end_all(1) }
#endif
    /* condemn_workers_of_pods: `pod_gone`, whether its processes run or not */
    :: d_step { FAULT && up && !away && LIVE_ROW(0) -> faults++; condemn(0) }
    :: d_step { FAULT && up && !away && LIVE_ROW(1) -> faults++; condemn(1) }
    od
}

active proctype Time() {
    byte i;
    do
    :: calm && ALL_FINAL -> break       /* anything else that keeps time from passing is an invalid end state */
    :: d_step { !ANY_BUSY && !(calm && ALL_FINAL) ->
            if
            :: calm -> quiet++; assert(quiet <= BOUND)                                  /* property 2: no lost task */
            :: else
            fi;
            for (i : 0 .. WORKERS - 1) {
                if
#ifdef NO_FENCE
                :: deadline[i] == 0 -> fresh[i] = false
#else
                :: deadline[i] == 0 -> fresh[i] = false; stop_executor(i)       /* fence.py, zygote.py: the kernel */
#endif
                :: else -> fresh[i] = false; deadline[i]--
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
            gap = (gap < MAXGAP -> gap + 1 : gap) };
#ifdef CYCLES
progress:
        skip    /* no cycle without it: nothing goes round and round while time stands still */
#endif
    :: d_step { FAULT && up -> faults++; disturbed++; up = false }      /* an outage, of any length */
    :: d_step { !up -> up = true }
    /* The database's clock is set forward, once: a second time within one lease is more than the margin is for. */
    :: d_step { FAULT && up && !stepped && gap < MAXTICK ->
            faults++; disturbed++; stepped = true; gap = MAXTICK }
    :: d_step { FAULT && !away -> faults++; away = true }
    :: d_step { away -> away = false }
    :: d_step { !calm && up && !away -> calm = true; faults = FAULTS }
    od
}
