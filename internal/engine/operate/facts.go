package operate

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/engine/health"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/upkeep"
)

// Facts is the state stored in Postgres, which does not depend on a running service.
type Facts struct {
	// OutboxDue counts the messages due for publishing, OutboxScheduled those
	// scheduled for later. OldestDue is the creation time of the oldest due message.
	OutboxDue       int64      `json:"outbox_due"`
	OldestDue       *time.Time `json:"oldest_due,omitempty"`
	OutboxScheduled int64      `json:"outbox_scheduled"`
	WaitingKeys     int64      `json:"waiting_keys"`
	WaitingMessages int64      `json:"waiting_messages"`
	Stopped         int64      `json:"stopped_messages"`
	// DueByTopic and FailedByConsumer break the counts down.
	DueByTopic       map[string]int64  `json:"due_by_topic"`
	FailedByConsumer map[string]Failed `json:"failed_by_consumer"`
	// Replicas counts the processes that publish the outbox.
	Replicas int `json:"replicas"`
	// ClockAhead is how many seconds the clock of this process is ahead of the
	// database's.
	ClockAhead float64 `json:"clock_ahead_seconds"`

	Paused      []consumer.Pause    `json:"paused_consumers"`
	Projections []eventstore.Status `json:"projections"`
	// Transaction is a long-running transaction that holds back vacuum.
	Transaction *upkeep.Transaction `json:"old_transaction,omitempty"`
}

// Failed counts the failed messages of a consumer.
type Failed struct {
	Waiting int64 `json:"waiting"`
	Stopped int64 `json:"stopped"`
}

// Facts reads the facts from Postgres. Each count ends at most, unless that is 0.
func (o *Operator) Facts(ctx context.Context, most int64) (f Facts, err error) {
	f.DueByTopic, f.FailedByConsumer = map[string]int64{}, map[string]Failed{}

	var limit *int64
	if most > 0 {
		limit = &most
	}

	batch := &pgx.Batch{}
	o.queueCounts(batch, &f, limit)

	asked := time.Now()

	var now time.Time

	batch.Queue(`SELECT clock_timestamp()`).QueryRow(func(row pgx.Row) error { return row.Scan(&now) })

	if err := o.Pool.SendBatch(ctx, batch).Close(); err != nil {
		return f, fmt.Errorf("reading status: %w", err)
	}

	f.ClockAhead = ahead(asked, time.Now(), now).Seconds()

	for topic := range f.DueByTopic {
		f.OutboxDue += f.DueByTopic[topic]
	}

	for _, failed := range f.FailedByConsumer {
		f.WaitingMessages += failed.Waiting
		f.Stopped += failed.Stopped
	}

	if f.Paused, err = consumer.Pauses(ctx, o.Pool); err != nil {
		return f, err
	}

	if f.Projections, err = o.Projector.Status(ctx); err != nil {
		return f, err
	}

	f.Transaction, err = o.Janitor.Old(ctx)

	return f, err
}

// ahead returns how far the local clock is ahead of a remote time that was read
// between sent and received.
func ahead(sent, received, remote time.Time) time.Duration {
	switch {
	case remote.Before(sent):
		return sent.Sub(remote)
	case remote.After(received):
		return received.Sub(remote)
	default:
		return 0
	}
}

func (o *Operator) queueCounts(batch *pgx.Batch, f *Facts, limit *int64) {
	batch.Queue(`
		SELECT (SELECT min(created_at) FROM outbox WHERE available_at IS NULL),
		       (SELECT count(*) FROM (SELECT FROM outbox WHERE available_at IS NOT NULL LIMIT $1) AS o),
		       (SELECT count(*) FROM (SELECT FROM failed_keys WHERE due_at IS NOT NULL LIMIT $1) AS k),
		       (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = $2 AND objid = 0 AND objsubid = 2 AND granted
		          AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`, limit, postgres.LockRelays).
		QueryRow(func(row pgx.Row) error {
			return row.Scan(&f.OldestDue, &f.OutboxScheduled, &f.WaitingKeys, &f.Replicas)
		})
	batch.Queue(`SELECT topic, count(*) FROM (SELECT topic FROM outbox WHERE available_at IS NULL LIMIT $1) AS o GROUP BY topic`, limit).
		Query(func(rows pgx.Rows) error {
			var (
				topic string
				n     int64
			)

			_, err := pgx.ForEachRow(rows, []any{&topic, &n}, func() error {
				f.DueByTopic[topic] = n

				return nil
			})

			return err
		})
	// Each half uses a partial index.
	batch.Queue(`
		SELECT consumer, count(*) FILTER (WHERE state = 'waiting'), count(*) FILTER (WHERE state = 'stopped') FROM (
			(SELECT consumer, state FROM failed_messages WHERE state = 'waiting' AND failed_key IS NOT NULL LIMIT $1)
			UNION ALL
			(SELECT consumer, state FROM failed_messages WHERE state = 'stopped' LIMIT $1)) AS f
		GROUP BY consumer`, limit).
		Query(func(rows pgx.Rows) error {
			var (
				name   string
				counts Failed
			)

			_, err := pgx.ForEachRow(rows, []any{&name, &counts.Waiting, &counts.Stopped}, func() error {
				f.FailedByConsumer[name] = counts

				return nil
			})

			return err
		})
}

// Limits above which facts are troubles.
const (
	// maxClockAhead is far below the tolerances of webhooks and certificates.
	maxClockAhead = 30 * time.Second
	// maxDue is how long a message may wait in the outbox without a reason.
	maxDue = 2 * time.Minute
	// maxLag is how old an event may be that a projection has not read.
	maxLag = time.Minute
)

// Troubles returns what somebody should act on.
func (f Facts) Troubles() (list []health.Trouble) {
	add := func(kind, name string, since *time.Time, reason, remedy string) {
		list = append(list, health.Trouble{Kind: kind, Name: name, Level: health.Degraded, Since: since, Reason: reason, Remedy: remedy})
	}

	if f.Stopped > 0 {
		add(health.Messages, "stopped messages", nil, fmt.Sprintf("%d messages are stopped and need a decision", f.Stopped),
			"`millrace failed groups` shows why; then `millrace failed edit`, `requeue` or `discard`")
	}

	for _, p := range f.Paused {
		add(health.Consumer, p.Consumer, &p.At, fmt.Sprintf("paused by %s: %s", p.Who, p.Why), "`millrace consumers resume "+p.Consumer+"`")
	}

	if f.OldestDue != nil && time.Since(*f.OldestDue) > maxDue {
		add(health.Messages, "outbox", f.OldestDue, fmt.Sprintf("%d messages wait for a broker or for a consumer, the oldest since then", f.OutboxDue),
			"see what else is listed: a broker, a pause or a dependency; otherwise add replicas")
	}

	for _, p := range f.Projections {
		if p.Lag() > maxLag {
			add(health.Task, "projection "+p.Name, p.Unread, fmt.Sprintf("is behind by %d positions, the oldest event since then", p.Behind),
				"see what else is listed: a failing projection or an old transaction; `millrace projections status` shows progress")
		}
	}

	if t := f.Transaction; t != nil {
		add(health.Postgres, "old transaction", nil, t.Describe()+" holds back vacuum, projections and reads of the outbox", t.Remedy())
	}

	if skew := time.Duration(f.ClockAhead * float64(time.Second)).Round(time.Second); skew.Abs() > maxClockAhead {
		add(health.Service, "clock", nil, fmt.Sprintf("the clock here is %s ahead of the database's", skew),
			"synchronise the clocks (NTP): webhooks, certificates and retention depend on them")
	}

	return list
}
