package operate

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/engine/health"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/scrub"
	"github.com/millracehq/millrace/internal/engine/upkeep"
)

// Facts is the state stored in Postgres, which does not depend on a running service.
// Its parts are read independently. A part that could not be read is empty and listed
// in Gaps.
type Facts struct {
	Counts      *Counts             `json:"counts,omitempty"`
	Paused      []consumer.Pause    `json:"paused_consumers"`
	Projections []eventstore.Status `json:"projections"`
	// Transaction is a long-running transaction that delays vacuum.
	Transaction *upkeep.Transaction `json:"old_transaction,omitempty"`
	Gaps        []Gap               `json:"gaps,omitempty"`
}

// Counts holds the number of messages waiting in each place.
type Counts struct {
	// OutboxDue counts the messages due for publishing, OutboxScheduled those
	// scheduled for later. OldestDue is the creation time of the oldest due message.
	OutboxDue       int64      `json:"outbox_due"`
	OldestDue       *time.Time `json:"oldest_due,omitempty"`
	OutboxScheduled int64      `json:"outbox_scheduled"`
	// OutboxRefused counts the messages that their broker refuses.
	OutboxRefused   int64 `json:"outbox_refused"`
	WaitingKeys     int64 `json:"waiting_keys"`
	WaitingMessages int64 `json:"waiting_messages"`
	Stopped         int64 `json:"stopped_messages"`
	// DueByTopic and FailedByConsumer break the counts down.
	DueByTopic       map[string]int64  `json:"due_by_topic"`
	FailedByConsumer map[string]Failed `json:"failed_by_consumer"`
	// Replicas counts the processes that publish the outbox.
	Replicas int `json:"replicas"`
	// Releases counts them by the version of their program. It has several during a rolling
	// restart. A program that does not name its version is counted under "".
	Releases map[string]int `json:"releases"`
	// ClockAhead is the number of seconds by which this process's clock is ahead of the
	// database's.
	ClockAhead float64 `json:"clock_ahead_seconds"`
}

// Parts of the facts.
const (
	partCounts       = "counts"
	partPauses       = "pauses"
	partProjections  = "projections"
	partTransactions = "transactions"
)

// Gap is a part of the facts that could not be read.
type Gap struct {
	Part string `json:"part" enum:"counts,pauses,projections,transactions"`
	// Since is the time of the first of the consecutive measurements that lacked the
	// part, if known.
	Since *time.Time `json:"since,omitempty"`
	Why   string     `json:"why"`

	err error
}

// away reports whether the part is missing because Postgres did not answer.
func (g Gap) away() bool { return postgres.IsAway(g.err) }

// Failed counts the failed messages for a consumer.
type Failed struct {
	Waiting int64 `json:"waiting"`
	Stopped int64 `json:"stopped"`
}

// Facts reads the facts from Postgres. Each count stops at most, unless most is 0. Facts
// reads no further parts once Postgres fails to answer.
func (o *Operator) Facts(ctx context.Context, most int64) (f Facts) {
	var away error

	read := func(part string, from func() error) {
		err := away
		if err == nil {
			err = from()
		}

		if err != nil {
			f.Gaps = append(f.Gaps, Gap{Part: part, Why: scrub.Text(err.Error()), err: err})
		}

		if postgres.IsAway(err) {
			away = err
		}
	}

	read(partPauses, func() (err error) {
		f.Paused, err = consumer.Pauses(ctx, o.Pool)

		return err
	})
	read(partProjections, func() (err error) {
		f.Projections, err = o.Projector.Status(ctx)

		return err
	})
	read(partTransactions, func() (err error) {
		f.Transaction, err = o.Janitor.Old(ctx)

		return err
	})
	// Counts take the longest.
	read(partCounts, func() (err error) {
		f.Counts, err = o.counts(ctx, most)

		return err
	})

	return f
}

// gap returns the gap for a part, or nil if it was read or nothing is known.
func (f *Facts) gap(part string) *Gap {
	if f == nil {
		return nil
	}

	for i := range f.Gaps {
		if f.Gaps[i].Part == part {
			return &f.Gaps[i]
		}
	}

	return nil
}

// away returns the error if nothing could be read because Postgres did not answer, or "".
func (f *Facts) away() string {
	if first := f.gap(partPauses); first != nil && first.away() {
		return first.Why
	}

	return ""
}

func (o *Operator) counts(ctx context.Context, most int64) (*Counts, error) {
	c := &Counts{DueByTopic: map[string]int64{}, FailedByConsumer: map[string]Failed{}, Releases: map[string]int{}}

	var limit *int64
	if most > 0 {
		limit = &most
	}

	batch := &pgx.Batch{}
	c.queue(batch, limit)

	asked := time.Now()

	var now time.Time

	batch.Queue(`SELECT clock_timestamp()`).QueryRow(func(row pgx.Row) error { return row.Scan(&now) })

	if err := o.Pool.SendBatch(ctx, batch).Close(); err != nil {
		return nil, fmt.Errorf("counting messages: %w", err)
	}

	c.ClockAhead = ahead(asked, time.Now(), now).Seconds()

	for topic := range c.DueByTopic {
		c.OutboxDue += c.DueByTopic[topic]
	}

	for _, failed := range c.FailedByConsumer {
		c.WaitingMessages += failed.Waiting
		c.Stopped += failed.Stopped
	}

	return c, nil
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

func (c *Counts) queue(batch *pgx.Batch, limit *int64) {
	c.queueReplicas(batch)
	batch.Queue(`
		SELECT (SELECT created_at FROM outbox WHERE available_at IS NULL ORDER BY seq LIMIT 1),
		       (SELECT count(*) FROM (SELECT FROM outbox WHERE available_at < 'infinity' LIMIT $1) AS o),
		       (SELECT count(*) FROM (SELECT FROM outbox WHERE available_at = 'infinity' LIMIT $1) AS o),
		       (SELECT count(*) FROM (SELECT FROM failed_keys WHERE due_at IS NOT NULL LIMIT $1) AS k)`, limit).
		QueryRow(func(row pgx.Row) error {
			return row.Scan(&c.OldestDue, &c.OutboxScheduled, &c.OutboxRefused, &c.WaitingKeys)
		})
	batch.Queue(`SELECT topic, count(*) FROM (SELECT topic FROM outbox WHERE available_at IS NULL LIMIT $1) AS o GROUP BY topic`, limit).
		Query(func(rows pgx.Rows) error {
			var (
				topic string
				n     int64
			)

			_, err := pgx.ForEachRow(rows, []any{&topic, &n}, func() error {
				c.DueByTopic[topic] = n

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
				c.FailedByConsumer[name] = counts

				return nil
			})

			return err
		})
}

// queueReplicas adds the query for the processes that hold the lock of a relay.
func (c *Counts) queueReplicas(batch *pgx.Batch) {
	batch.Queue(`
		SELECT coalesce(trim(substr(a.application_name, length($2) + 1)), ''), count(*)
		FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
		WHERE l.locktype = 'advisory' AND l.classid = $1 AND l.objid = 0 AND l.objsubid = 2 AND l.granted
		  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
		GROUP BY 1`, postgres.LockRelays, outbox.SessionName).
		Query(func(rows pgx.Rows) error {
			var (
				release string
				n       int
			)

			_, err := pgx.ForEachRow(rows, []any{&release, &n}, func() error {
				c.Releases[release] = n
				c.Replicas += n

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
	// maxLag is the maximum age of an event that a projection has not read.
	maxLag = time.Minute
)

// degraded returns a trouble that does not keep messages from being applied.
func degraded(kind, name string, since *time.Time, reason, remedy string) health.Trouble {
	return health.Trouble{Kind: kind, Name: name, Level: health.Degraded, Since: since, Reason: reason, Remedy: remedy}
}

// pausedByOperator is the reason that everybody may see. `millrace consumers list` names
// the operator and the reason.
const pausedByOperator = "paused by an operator"

func pausedTrouble(p consumer.Pause) health.Trouble {
	reason := pausedByOperator
	if p.Who != "" {
		reason = fmt.Sprintf("paused by %s: %s", p.Who, p.Why)
	}

	return degraded(health.Consumer, p.Consumer, &p.At, reason, "`millrace consumers resume "+p.Consumer+"`")
}

// Troubles returns what somebody should act on.
func (f *Facts) Troubles() (list []health.Trouble) {
	if f.Counts != nil {
		list = f.Counts.troubles()
	}

	for _, p := range f.Paused {
		list = append(list, pausedTrouble(p))
	}

	for _, p := range f.Projections {
		if p.Lag() > maxLag {
			list = append(list, degraded(health.Task, "projection "+p.Name, p.Unread,
				"is behind by "+event.Plural(p.Behind, "position", "positions")+", and its oldest unread event dates from then",
				"see the other entries: a failing projection or an old transaction; `millrace projections status` shows progress"))
		}
	}

	if t := f.Transaction; t != nil {
		list = append(list, degraded(health.Postgres, "old transaction", nil, t.Describe()+" delays vacuum, projections and reads of the outbox", t.Remedy()))
	}

	for _, g := range f.Gaps {
		kind, name, remedy := health.Postgres, g.Part, remedyForTask(g.Why)
		if g.away() { // the breaker says the same, and merge keeps one
			kind, name, remedy = health.Dependency, postgres.Dependency, remedyFor(postgres.Dependency, g.Why)
		}

		list = append(list, degraded(kind, name, g.Since, "the "+g.Part+" could not be read: "+g.Why, remedy))
	}

	return merge(nil, list)
}

// StoppedMessages is the name of the trouble that messages are stopped.
const StoppedMessages = "stopped messages"

func (c *Counts) troubles() (list []health.Trouble) {
	if c.Stopped > 0 {
		list = append(list, degraded(health.Messages, StoppedMessages, nil,
			event.Plural(c.Stopped, "message is stopped and needs a decision", "messages are stopped and need a decision"),
			"`millrace failed groups` shows why; then `millrace failed edit`, `requeue` or `discard`"))
	}

	if c.OutboxRefused > 0 {
		list = append(list, degraded(health.Messages, "refused messages", nil,
			event.Plural(c.OutboxRefused, "message is refused by its broker and needs a decision", "messages are refused by their broker and need a decision"),
			"`millrace refused list` shows why; then `millrace refused retry` or `discard`"))
	}

	if c.OldestDue != nil && time.Since(*c.OldestDue) > maxDue {
		list = append(list, degraded(health.Messages, "outbox", c.OldestDue,
			event.Plural(c.OutboxDue, "message waits", "messages wait")+" for a broker or for a consumer, the oldest since then",
			"see the other entries: a broker, a pause or a dependency; otherwise add replicas"))
	}

	if skew := time.Duration(c.ClockAhead * float64(time.Second)).Round(time.Second); skew.Abs() > maxClockAhead {
		list = append(list, degraded(health.Service, "clock", nil, fmt.Sprintf("the clock here is %s ahead of the database's", skew),
			"synchronise the clocks (NTP): webhooks, certificates and retention depend on them"))
	}

	return list
}
