// River at work on no-op jobs, through its public module alone: the peer of benchmarks/throughput.py.
//
//	river prepare <url> <jobs> [args]                 its migrations, and so many queued jobs; with "args", those of ours
//	river work <url> <workers> <cooldown> <poll>      work until SIGTERM; 0s stands for River's default
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

// River's own bench inserts in batches of this size.
const insertBatch = 5_000

// Without members, or with those that ours have.
type noopArgs struct {
	JobID       string `json:"job_id,omitempty"`
	UserID      string `json:"user_id,omitempty"`
	WorkspaceID string `json:"workspace_id,omitempty"`
	Payload     string `json:"payload,omitempty"`
}

var sameAsOurs = noopArgs{
	JobID:       "0b9b0f5e-6a0c-4c52-9f0c-0c3f7d4a1e01",
	UserID:      "0b9b0f5e-6a0c-4c52-9f0c-0c3f7d4a1e02",
	WorkspaceID: "0b9b0f5e-6a0c-4c52-9f0c-0c3f7d4a1e03",
	Payload:     "-",
}

// Kind names the job.
func (noopArgs) Kind() string { return "noop" }

type noopWorker struct {
	river.WorkerDefaults[noopArgs]
}

// Work does nothing, so that what is measured is River.
func (*noopWorker) Work(context.Context, *river.Job[noopArgs]) error { return nil }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "river:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) < 3 {
		return fmt.Errorf("usage: prepare <url> <jobs> [args] | work <url> <workers> <cooldown> <poll>")
	}
	number, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	pool, err := pgxpool.New(ctx, args[1])
	if err != nil {
		return err
	}
	defer pool.Close()
	switch {
	case args[0] == "prepare" && len(args) == 3:
		return prepare(ctx, pool, number, noopArgs{})
	case args[0] == "prepare" && len(args) == 4 && args[3] == "args":
		return prepare(ctx, pool, number, sameAsOurs)
	case args[0] == "work" && len(args) == 5:
		return work(ctx, pool, number, args[3], args[4])
	}
	return fmt.Errorf("unknown: %v", args)
}

func prepare(ctx context.Context, pool *pgxpool.Pool, jobs int, jobArgs noopArgs) error {
	driver := riverpgxv5.New(pool)
	migrator, err := rivermigrate.New(driver, nil)
	if err != nil {
		return err
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return err
	}
	client, err := river.NewClient(driver, &river.Config{})
	if err != nil {
		return err
	}
	for jobs > 0 {
		batch := make([]river.InsertManyParams, min(jobs, insertBatch))
		for index := range batch {
			batch[index].Args = jobArgs
		}
		if _, err := client.InsertManyFast(ctx, batch); err != nil {
			return err
		}
		jobs -= len(batch)
	}
	return nil
}

func work(ctx context.Context, pool *pgxpool.Pool, workers int, cooldown, poll string) error {
	config := &river.Config{
		Queues:  map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: workers}},
		Workers: river.NewWorkers(),
	}
	var err error
	if config.FetchCooldown, err = time.ParseDuration(cooldown); err != nil {
		return err
	}
	if config.FetchPollInterval, err = time.ParseDuration(poll); err != nil {
		return err
	}
	river.AddWorker(config.Workers, &noopWorker{})
	client, err := river.NewClient(riverpgxv5.New(pool), config)
	if err != nil {
		return err
	}
	if err := client.Start(ctx); err != nil {
		return err
	}
	<-client.Stopped()
	return nil
}
