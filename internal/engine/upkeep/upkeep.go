// Package upkeep keeps the database from growing without bound. One replica at a time
// deletes expired data. All replicas watch for transactions that prevent the server
// from reclaiming space. Package app defines the tasks.
package upkeep

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/health"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Config configures upkeep.
type Config struct {
	// Every is how often one of the replicas runs all tasks. Defaults to 1h.
	Every time.Duration `koanf:"every"`
	// OldTransaction is how long a transaction may be open before it is reported.
	// Defaults to 5m.
	OldTransaction time.Duration `koanf:"old_transaction"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{Every: time.Hour, OldTransaction: 5 * time.Minute}
}

// Validate reports all mistakes, naming the keys.
func (c Config) Validate() error {
	return errors.Join(
		check.Value(c.Every >= time.Minute, "upkeep.every", c.Every, "at least 1m"),
		check.Value(c.OldTransaction >= time.Second, "upkeep.old_transaction", c.OldTransaction, "at least 1s"),
	)
}

// Task is one upkeep task. It can be repeated and cancelled at any time.
type Task struct {
	Name string
	// Do returns the number of rows or tables it removed.
	Do func(ctx context.Context) (n int64, err error)
}

// Done is the result of a task.
type Done struct {
	Task    string  `json:"task"`
	Removed int64   `json:"removed"`
	Seconds float64 `json:"seconds"`
	Error   string  `json:"error,omitempty"`
}

// Delays between rounds.
const (
	firstRound   = time.Minute // upkeep must not slow down startup
	retryRound   = time.Minute // after a failure, for example a locked table
	roundLimit   = time.Hour   // deleting a long backlog takes time
	watchEvery   = 15 * time.Second
	watchTimeout = 5 * time.Second
)

// Janitor runs the tasks.
type Janitor struct {
	cfg    Config
	pool   *pgxpool.Pool
	tasks  []Task
	logger *slog.Logger
	oldest prometheus.Gauge

	// Loop tracks whether rounds succeed.
	Loop *health.Loop
	// old records whether the last log entry reported an old transaction.
	old bool
}

// New returns a janitor. Call Run to start it.
func New(cfg Config, pool *pgxpool.Pool, logger *slog.Logger, registry *prometheus.Registry) *Janitor {
	logger = logger.With(slog.String("component", "upkeep"))

	return &Janitor{
		cfg: cfg, pool: pool, logger: logger,
		Loop: health.NewLoop("upkeep", health.Degraded, cfg.Every+roundLimit, logger),
		oldest: promauto.With(registry).NewGauge(prometheus.GaugeOpts{
			Name: "millrace_oldest_transaction_age_seconds", Help: "Age of the oldest open transaction on the server, which holds back vacuum.",
		}),
	}
}

// Add adds tasks, which run in the order given. Call it before Run.
func (j *Janitor) Add(tasks ...Task) { j.tasks = append(j.tasks, tasks...) }

// Run runs the tasks periodically and watches for old transactions, until ctx ends.
func (j *Janitor) Run(ctx context.Context) {
	next := time.NewTimer(firstRound)
	defer next.Stop()

	watch := time.NewTicker(watchEvery)
	defer watch.Stop()

	j.Loop.Begin()

	for {
		select {
		case <-ctx.Done():
			return
		case <-watch.C:
			j.watch(ctx)
		case <-next.C:
			next.Reset(j.round(ctx))
		}
	}
}

// round runs all tasks and returns the delay before the next round.
func (j *Janitor) round(ctx context.Context) time.Duration {
	done, err := j.Do(ctx)

	for _, d := range done {
		if d.Removed > 0 {
			j.logger.Info("deleted expired data", slog.String("task", d.Task), slog.Int64("removed", d.Removed))
		}
	}

	switch {
	case ctx.Err() != nil:
	case err == nil, errors.Is(err, postgres.ErrLocked): // another process runs the tasks
		j.Loop.Report(nil)
	default:
		// Until upkeep succeeds, rows go to the default partitions and expired rows
		// remain.
		j.Loop.Report(err)

		return min(retryRound, j.cfg.Every)
	}

	return j.cfg.Every
}

// Do runs all tasks, even after one fails. It returns postgres.ErrLocked if another
// process is running them.
func (j *Janitor) Do(ctx context.Context) (done []Done, err error) {
	err = postgres.TryLock(ctx, j.pool, postgres.LockUpkeep, "", func() error {
		done, err = j.doAll(ctx)

		return err
	})
	if err != nil {
		return done, fmt.Errorf("running upkeep: %w", err)
	}

	return done, nil
}

func (j *Janitor) doAll(ctx context.Context) (done []Done, err error) {
	var errs []error

	for _, task := range j.tasks {
		started := time.Now()
		n, err := task.Do(ctx)
		d := Done{Task: task.Name, Removed: n, Seconds: time.Since(started).Seconds()}

		if err != nil {
			d.Error = err.Error()
			errs = append(errs, fmt.Errorf("%s: %w", task.Name, err))
		}

		done = append(done, d)
	}

	return done, errors.Join(errs...)
}
