package upkeep

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Transaction is an open transaction, or something else that prevents vacuum from
// reclaiming space.
type Transaction struct {
	// Kind is session, prepared transaction or replication slot.
	Kind string `json:"kind"`
	// PID is the server process, or 0.
	PID int32 `json:"pid,omitempty"`
	// Name is the application_name of a session, or the name of the prepared
	// transaction or slot.
	Name     string        `json:"name"`
	Database string        `json:"database"`
	State    string        `json:"state"`
	Age      time.Duration `json:"age_ns"`
}

// Describe identifies the transaction on one line.
func (t Transaction) Describe() string {
	return fmt.Sprintf("%s %q, pid %d, %s, on %s, open for %s", t.Kind, t.Name, t.PID, t.State, t.Database, t.Age.Round(time.Second))
}

// Remedy says how to end the transaction.
func (t Transaction) Remedy() string {
	switch t.Kind {
	case kindPrepared:
		return "in its database: ROLLBACK PREPARED or COMMIT PREPARED '" + t.Name + "'"
	case kindSlot:
		return "let its consumer connect again, or: SELECT pg_drop_replication_slot('" + t.Name + "')"
	default:
		return fmt.Sprintf("if nobody needs it: SELECT pg_terminate_backend(%d)", t.PID)
	}
}

// Kinds of transactions.
const (
	kindSession  = "session"
	kindPrepared = "prepared transaction"
	kindSlot     = "replication slot"
)

// oldestTransaction returns the oldest transaction in any database on the server, because
// projections wait for all of them. The result is empty if the only transaction is this
// query's own. It never includes query text, which may contain payloads.
//
// A role without pg_monitor cannot see the sessions of other roles. A standby with
// hot_standby_feedback has no age and is not reported.
func (j *Janitor) oldestTransaction(ctx context.Context) (Transaction, error) {
	open, err := postgres.Collect(ctx, j.pool, func(row pgx.CollectableRow) (t Transaction, err error) {
		var seconds float64

		err = row.Scan(&t.Kind, &t.PID, &t.Name, &t.Database, &t.State, &seconds)
		t.Age = time.Duration(max(seconds, 0) * float64(time.Second))

		return t, err
	}, `
		SELECT kind, pid, name, database, state, age FROM (
			SELECT $1 AS kind, pid, application_name AS name, coalesce(datname, '') AS database, coalesce(state, '') AS state,
			       extract(epoch FROM clock_timestamp() - xact_start)::float8 AS age
			FROM pg_stat_activity
			WHERE xact_start IS NOT NULL AND pid <> pg_backend_pid() AND backend_type NOT IN ('autovacuum worker', 'parallel worker')
			UNION ALL
			SELECT $2, 0, gid, database, 'prepared', extract(epoch FROM clock_timestamp() - prepared)::float8
			FROM pg_prepared_xacts
			UNION ALL
			SELECT $3, 0, slot_name, coalesce(database, ''), 'inactive',
			       extract(epoch FROM clock_timestamp() - (to_jsonb(s) ->> 'inactive_since')::timestamptz)::float8 -- since Postgres 17
			FROM pg_replication_slots s
			WHERE NOT active AND (xmin IS NOT NULL OR catalog_xmin IS NOT NULL)
		) AS open
		WHERE age IS NOT NULL ORDER BY age DESC LIMIT 1`, kindSession, kindPrepared, kindSlot)
	if err != nil || len(open) == 0 {
		return Transaction{}, err
	}

	return open[0], nil
}

// Old returns the oldest transaction if it exceeds the configured limit, otherwise
// nil.
func (j *Janitor) Old(ctx context.Context) (*Transaction, error) {
	oldest, err := j.oldestTransaction(ctx)
	if err != nil {
		return nil, fmt.Errorf("finding old transactions: %w", err)
	}

	if oldest.Age < j.cfg.OldTransaction {
		return nil, nil //nolint:nilnil // none is old
	}

	return &oldest, nil
}

// watch measures the oldest transaction. It logs when one exceeds the limit and when none
// does anymore.
func (j *Janitor) watch(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, watchTimeout)
	defer cancel()

	oldest, err := j.oldestTransaction(ctx)
	if err != nil {
		j.logger.Debug("could not find old transactions", slog.Any("error", err))

		return
	}

	j.oldest.Set(oldest.Age.Seconds())

	switch old := oldest.Age >= j.cfg.OldTransaction; {
	case old && !j.old:
		j.old = true
		j.logger.Warn("a long-running transaction prevents vacuum from reclaiming space and may delay projections",
			slog.String("kind", oldest.Kind), slog.Int("pid", int(oldest.PID)), slog.String("application", oldest.Name),
			slog.String("database", oldest.Database), slog.String("state", oldest.State), slog.Duration("age", oldest.Age.Round(time.Second)))
	case !old && j.old:
		j.old = false
		j.logger.Info("the long-running transaction has ended")
	}
}
