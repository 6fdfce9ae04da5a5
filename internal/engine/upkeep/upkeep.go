// Package upkeep keeps a database from growing for ever: one replica at a
// time removes what is past its retention, and each watches for transactions
// that keep the server from reclaiming space. What there is to do is listed in
// package app.
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
)

// Config says how often to do it, and how long to keep what.
type Config struct {
	// Every is how often one of the replicas does everything.
	Every time.Duration `koanf:"every"`
	// UserMissesRetention is how long updates of unknown users are kept; 0 is
	// for ever.
	UserMissesRetention time.Duration `koanf:"user_misses_retention"`
	// NotificationsRetention is how long records of notifications are kept; 0
	// is for ever.
	NotificationsRetention time.Duration `koanf:"notifications_retention"`
	// OldTransaction is how long a transaction may be open before it is
	// reported.
	OldTransaction time.Duration `koanf:"old_transaction"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{Every: time.Hour, OldTransaction: 5 * time.Minute}
}

// Validate reports every mistake, naming the key.
func (c Config) Validate() error {
	var errs []error

	if c.Every < time.Minute {
		errs = append(errs, fmt.Errorf("maintenance.every: is %s, expected at least 1m", c.Every))
	}

	for _, r := range []struct {
		key string
		is  time.Duration
	}{
		{"user_misses_retention", c.UserMissesRetention},
		{"notifications_retention", c.NotificationsRetention},
	} {
		if r.is != 0 && r.is < time.Hour {
			errs = append(errs, fmt.Errorf("maintenance.%s: is %s, expected at least 1h, or 0 for ever", r.key, r.is))
		}
	}

	if c.OldTransaction < time.Second {
		errs = append(errs, fmt.Errorf("maintenance.old_transaction: is %s, expected at least 1s", c.OldTransaction))
	}

	return errors.Join(errs...)
}

// Task is one thing to do. It can be done again at any time, and broken off.
type Task struct {
	Name string
	// Do returns how many things it removed.
	Do func(ctx context.Context) (n int64, err error)
}

// Done is a task that was done, or failed.
type Done struct {
	Task    string  `json:"task"`
	Removed int64   `json:"removed"`
	Seconds float64 `json:"seconds"`
	Error   string  `json:"error,omitempty"`
}

// ErrBusy says that another process maintains the database at this moment.
var ErrBusy = errors.New("another process is at it; nothing was done here")

// lockKey is the advisory lock of maintenance: "mlrj" in ASCII.
const lockKey = 0x6d6c726a

// Pace.
const (
	// firstAfter keeps a start from being slowed.
	firstAfter = time.Minute
	// againAfter is the pause after a failure, as when somebody holds a table.
	againAfter = time.Minute
	watchEvery = 15 * time.Second
	watchTime  = 5 * time.Second
)

// Janitor does the tasks.
type Janitor struct {
	cfg    Config
	pool   *pgxpool.Pool
	tasks  []Task
	logger *slog.Logger
	oldest prometheus.Gauge

	// failing and held are the state that was logged last.
	failing, held bool
}

// New returns a janitor that has no tasks yet and does nothing until Run.
func New(cfg Config, pool *pgxpool.Pool, logger *slog.Logger, registry *prometheus.Registry) *Janitor {
	return &Janitor{
		cfg: cfg, pool: pool, logger: logger.With(slog.String("component", "maintenance")),
		oldest: promauto.With(registry).NewGauge(prometheus.GaugeOpts{
			Name: "millrace_oldest_transaction_age_seconds", Help: "Age of the oldest open transaction on the server; it holds back vacuum.",
		}),
	}
}

// Add adds tasks, which are done in this order. It must be called before Run.
func (j *Janitor) Add(tasks ...Task) { j.tasks = append(j.tasks, tasks...) }

// Run does the tasks every so often, and watches for old transactions, until
// ctx ends.
func (j *Janitor) Run(ctx context.Context) {
	next := time.NewTimer(firstAfter)
	defer next.Stop()

	watch := time.NewTicker(watchEvery)
	defer watch.Stop()

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

// round does all tasks and returns when to do them again.
func (j *Janitor) round(ctx context.Context) time.Duration {
	done, err := j.Do(ctx)

	for _, d := range done {
		if d.Removed > 0 {
			j.logger.Info("removed what was past its retention", slog.String("task", d.Task), slog.Int64("removed", d.Removed))
		}
	}

	switch {
	case err == nil && j.failing:
		j.failing = false
		j.logger.Info("maintenance works again")
	case err == nil, errors.Is(err, ErrBusy), ctx.Err() != nil:
	default:
		if !j.failing {
			// Rows go to the default partitions meanwhile, and old ones stay.
			j.logger.Warn("could not do all of the maintenance, trying again until it works", slog.Any("error", err))
		}

		j.failing = true

		return min(againAfter, j.cfg.Every)
	}

	return j.cfg.Every
}

// Do does all tasks, also those after one that failed. It returns what was
// done, and ErrBusy if another process is at it.
func (j *Janitor) Do(ctx context.Context) (done []Done, err error) {
	conn, err := j.pool.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("connecting for maintenance: %w", err)
	}
	defer conn.Release()

	var free bool
	if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, lockKey).Scan(&free); err != nil {
		return nil, fmt.Errorf("locking for maintenance: %w", err)
	}

	if !free {
		return nil, ErrBusy
	}

	defer func() {
		unlockCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), watchTime)
		defer cancel()

		// A connection that is lost has lost its locks too.
		_, _ = conn.Exec(unlockCtx, `SELECT pg_advisory_unlock($1)`, lockKey)
	}()

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
