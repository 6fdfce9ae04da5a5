package outbox

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/millracehq/millrace/internal/engine/backoff"
	"github.com/millracehq/millrace/internal/engine/breaker"
	"github.com/millracehq/millrace/internal/engine/broker/driver"
	"github.com/millracehq/millrace/internal/engine/crashpoint"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/health"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Back-off of a key whose message could not be published.
const (
	minWait = 100 * time.Millisecond
	maxWait = 10 * time.Second
	// stuckAfter is the number of failures after which the wait reaches maxWait.
	stuckAfter = 8
)

// sessionRetry is the delay before the relay reconnects to Postgres.
const sessionRetry = time.Second

// deleteAfter is how long confirmed rows wait for a round that deletes them. Usually one that
// reads new rows comes first.
const deleteAfter = 10 * time.Millisecond

// roundLimit is how long a session may take before it balances its shards again.
const roundLimit = time.Minute

// sessionTimeout bounds each exchange with Postgres. A slower connection is closed,
// which releases its shards.
const sessionTimeout = 10 * time.Second

// Relay publishes the rows of the outbox. Replicas share the work: a shard is
// published by the replica that holds its advisory lock.
type Relay struct {
	cfg     Config
	pool    *pgxpool.Pool
	logger  *slog.Logger
	metrics *metrics

	mu    sync.Mutex
	links []*link
}

// Target is a broker that a relay publishes to.
type Target struct {
	// Name identifies the target. It is empty for the target without Only.
	Name      string
	Publisher message.Publisher
	// Lanes is the number of keys whose messages are published concurrently.
	Lanes int
	// Run is the maximum number of messages with the same key that are published together,
	// those of a topic in one call; see driver.Driver. 0 means 1.
	Run int
	// Only and Except select topics. At most one may be set. If neither is, the
	// target takes all topics.
	Only, Except []string
	// Unconsumed lists the topics that are not consumed here. Their messages are
	// recorded when published, so that conversations include them.
	Unconsumed []string
	// Suspended returns the topics that must not be published to at the moment. It may be
	// nil.
	Suspended func() []string
	// Breaker is the broker's breaker: while it is open, one message at a time is
	// tried. It may be nil.
	Breaker *breaker.Breaker
}

// link is a relay to one target. Links are independent, so that an unavailable broker
// does not delay others.
type link struct {
	*Relay

	target Target
	logger *slog.Logger
	queue  *queue
	// unconsumed tracks the rows to record when they are deleted.
	unconsumed unconsumed
	mark       mark
	wake       chan struct{}
	// suspended holds the topics that were suspended or refused in the last round.
	suspended atomic.Pointer[[]string]
	loop      *health.Loop
	// stuck has the topics that the broker refuses, refusals the messages that it refuses.
	stuck    stuck
	refusals refusals
	// woken is true if this process has committed rows since the last round. Other
	// replicas are then notified.
	woken atomic.Bool
	// deletion is true while a round is planned that deletes confirmed rows.
	deletion atomic.Bool
	// moved is true if another relay has joined, left or released shards.
	moved atomic.Bool
}

// NewRelay returns a relay. Call Run to start it.
func NewRelay(cfg Config, pool *pgxpool.Pool, logger *slog.Logger, registry *prometheus.Registry) *Relay {
	return &Relay{
		cfg:     cfg,
		pool:    pool,
		logger:  logger.With(slog.String("component", "outbox")),
		metrics: newMetrics(registry),
	}
}

// Wake starts a round after a transaction of this process has committed rows. It
// never blocks.
func (r *Relay) Wake() {
	r.mu.Lock()
	defer r.mu.Unlock()

	for _, l := range r.links {
		l.woken.Store(true)
		l.nudge()
	}
}

func (r *link) nudge() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run publishes to target until ctx ends, then waits at most Config.DrainTimeout for
// messages in flight. It survives the loss of the database and the broker. It may run
// concurrently for several targets.
func (r *Relay) Run(ctx context.Context, target Target) {
	l := &link{Relay: r, target: target, unconsumed: unconsumed{topics: target.Unconsumed}, logger: r.logger, queue: newQueue(max(1, target.Run)), wake: make(chan struct{}, 1)}
	if target.Name != "" {
		l.logger = r.logger.With(slog.String("broker", target.Name))
	}

	l.loop = health.NewLoop(strings.TrimSpace("relay "+target.Name), health.Unready, roundLimit, l.logger)

	r.mu.Lock()
	r.links = append(r.links, l)
	r.mu.Unlock()

	l.run(ctx)
}

// Loops returns the state of the sessions.
func (r *Relay) Loops() []*health.Loop {
	r.mu.Lock()
	defer r.mu.Unlock()

	return postgres.Column(r.links, func(l *link) *health.Loop { return l.loop })
}

func (r *link) run(ctx context.Context) {
	var running sync.WaitGroup

	for range r.target.Lanes {
		running.Go(func() { r.lane(ctx, r.target.Publisher) })
	}

	listening, stopListening := context.WithCancel(ctx)
	running.Go(func() { r.listen(listening) })

	r.loop.Begin()

	for ctx.Err() == nil {
		err := r.session(ctx)
		if err != nil && ctx.Err() == nil {
			r.loop.Report(err)

			_ = backoff.Sleep(ctx, sessionRetry)
		}
	}

	stopListening()
	r.queue.close()
	r.wait(&running)
}

// wait waits for the lanes until the drain times out. The row of a lane that is still
// waiting for the broker stays in the table.
func (r *link) wait(running *sync.WaitGroup) {
	done := make(chan struct{})

	go func() {
		running.Wait()
		close(done)
	}()

	select {
	case <-done:
	case <-time.After(r.cfg.DrainTimeout):
		r.logger.Warn("the broker did not confirm in time; unconfirmed messages will be published again")
	}
}

// session uses a single connection. Its advisory locks represent ownership of the
// shards, so everything that requires ownership happens on it.
func (r *link) session(ctx context.Context) error {
	conn, err := r.connect(ctx)
	if err != nil {
		return err
	}

	owned := newShards(conn, r.target.Name)

	defer func() {
		r.metrics.shards.WithLabelValues(r.broker()).Set(0)
		closeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), sessionRetry)
		defer cancel()

		_ = conn.Close(closeCtx)
	}()

	if err := owned.join(ctx); err != nil {
		return err
	}

	r.mark.reset()

	ticker := time.NewTicker(r.cfg.PollInterval)
	defer ticker.Stop()

	// Complete a statement that is running when ctx ends: cancelling it would close
	// the connection, which the drain needs to delete confirmed rows.
	work := context.WithoutCancel(ctx)

	if err := r.tick(work, conn, owned); err != nil {
		return err
	}

	for {
		if err := r.round(work, conn, owned); err != nil {
			return r.abandon(ctx, err)
		}

		select {
		case <-ctx.Done():
			return r.drain(ctx, conn, owned)
		case <-r.wake:
			if r.moved.Swap(false) {
				if err := r.balance(work, owned); err != nil {
					return r.abandon(ctx, err)
				}
			}
		case <-ticker.C:
			if err := r.tick(work, conn, owned); err != nil {
				return r.abandon(ctx, err)
			}
		}
	}
}

// abandon drops all rows that no lane is publishing: without the locks another
// replica may publish them. It drops nothing if ctx has ended.
func (r *link) abandon(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil //nolint:nilerr // the relay is stopping
	}

	r.queue.drop(func(int16) bool { return false })

	return err
}

// connect opens a dedicated connection outside the pool. It lives as long as the
// session and does not wait for disk flushes: a deletion lost in a crash only means
// that a message is published again.
func (r *link) connect(ctx context.Context) (*pgx.Conn, error) {
	conn, err := postgres.Connect(ctx, r.pool, strings.TrimSpace(SessionName+" "+r.cfg.Release), map[string]string{
		"synchronous_commit": "off",
		// A read fetches the first few of many rows through an index. The planner does not
		// know how few (LIMIT is a parameter) or how many rows there are by now, and would
		// otherwise read and sort all of them.
		"enable_bitmapscan": "off",
		"enable_sort":       "off",
	})
	if err != nil {
		return nil, fmt.Errorf("connecting relay: %w", err)
	}

	return conn, nil
}

// balance takes or releases shards.
func (r *link) balance(ctx context.Context, owned *shards) error {
	ctx, cancel := context.WithTimeout(ctx, sessionTimeout)
	defer cancel()

	before := len(owned.list)

	lost, err := owned.balance(ctx)
	if err != nil {
		return err
	}

	if lost {
		r.queue.drop(owned.has)
	}

	if len(owned.list) != before {
		r.mark.reset() // the new shards have not been read
	}

	r.metrics.shards.WithLabelValues(r.broker()).Set(float64(len(owned.list)))

	return nil
}

// tick performs the periodic work: it balances the shards, releases scheduled rows
// and updates metrics.
func (r *link) tick(ctx context.Context, conn *pgx.Conn, owned *shards) error {
	if err := r.balance(ctx, owned); err != nil {
		return err
	}

	ctx, cancel := context.WithTimeout(ctx, sessionTimeout)
	defer cancel()

	// A message that becomes due is ordered by its sequence number.
	released, err := conn.Exec(ctx, `
		UPDATE outbox SET available_at = NULL
		WHERE available_at <= clock_timestamp() AND shard = ANY($1)`, owned.list)
	if err != nil {
		return fmt.Errorf("releasing scheduled messages: %w", err)
	}

	if released.RowsAffected() > 0 {
		r.mark.reset()
		crashpoint.At(crashpoint.RelayScheduled)
	}

	r.loop.Report(nil)

	if r.target.Name != "" {
		return nil // the unnamed link measures for all links
	}

	return r.measure(ctx, conn)
}

func (r *link) measure(ctx context.Context, conn *pgx.Conn) error {
	var oldest, waiting float64

	err := conn.QueryRow(ctx, `
		SELECT COALESCE(extract(epoch FROM clock_timestamp() - (
		           SELECT created_at FROM outbox WHERE available_at IS NULL ORDER BY seq LIMIT 1)), 0)::float8,
		       (SELECT count(*) FROM (SELECT FROM outbox WHERE available_at IS NULL LIMIT 10000) AS due)::float8`).
		Scan(&oldest, &waiting)
	if err != nil {
		return fmt.Errorf("measuring outbox: %w", err)
	}

	r.metrics.oldest.Set(max(oldest, 0))
	r.metrics.waiting.Set(waiting)

	return nil
}

// round deletes confirmed rows and reads the next ones, both in one round trip,
// until nothing is left to do.
func (r *link) round(ctx context.Context, conn *pgx.Conn, owned *shards) error {
	for {
		r.returnSuspended()

		if err := r.setAside(ctx, conn); err != nil {
			return err
		}

		if err := r.probe(ctx, conn, owned); err != nil {
			return err
		}

		confirmed := r.queue.takeConfirmed()
		next := r.queue.wants(r.cfg.BatchSize, r.cfg.MaxInFlight)

		rows, xmin, err := r.exchange(ctx, conn, owned, confirmed, next)
		if err != nil {
			r.queue.restore(confirmed)

			return err
		}

		r.queue.deleted(confirmed)
		r.unconsumed.deleted(confirmed)

		if len(confirmed) > 0 {
			crashpoint.At(crashpoint.RelayDeleted)
		}

		if err := r.found(ctx, conn, next, rows, xmin); err != nil {
			return err
		}

		if next.limit <= 0 || !next.cut(rows) {
			return nil
		}
	}
}

// found queues the rows that were read and moves the mark.
func (r *link) found(ctx context.Context, conn *pgx.Conn, next want, rows []row, xmin int64) error {
	kept := r.queue.push(rows, next.returns)

	if xmin == 0 { // nothing was read
		return nil
	}

	r.mark.end(next, rows, xmin, kept)

	if len(rows) == 0 {
		return nil
	}

	crashpoint.At(crashpoint.RelayRead)

	return r.mark.take(ctx, conn)
}

// exchange deletes confirmed rows and reads the next ones. xmin is from a snapshot just
// before the read, or 0 if nothing was read.
func (r *link) exchange(
	ctx context.Context, conn *pgx.Conn, owned *shards, confirmed []int64, next want,
) (rows []row, xmin int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, sessionTimeout)
	defer cancel()

	batch := &pgx.Batch{}

	if len(confirmed) > 0 {
		crashpoint.At(crashpoint.RelayDeleting)

		sql, args := r.unconsumed.deletion(confirmed)
		batch.Queue(sql, args...)
	}

	if r.woken.Swap(false) && owned.shared {
		batch.Queue(`SELECT pg_notify($1, '')`, Channel)
	}

	if next.limit > 0 && len(owned.list) > 0 {
		// Empty, not nil: a comparison with NULL is never true.
		except := append(append([]string{}, r.suspendedTopics()...), r.target.Except...)
		low := r.mark.begin(next, len(r.suspendedTopics()) > 0, r.cfg.PollInterval)
		topics, args := r.topics(owned.list, next.inFlight, next.backingOff, next.limit, except, low, next.bytes)

		batch.Queue(`SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint`).QueryRow(func(row pgx.Row) error { return row.Scan(&xmin) })
		// Reads skip the rows in flight and the rows of keys that back off. The ranges and
		// NOT IN make that cheap with a search and a hash; <> ALL would compare each row
		// with each element.
		batch.Queue(`
			SELECT `+rowColumns+`
			FROM (
				SELECT *, sum(octet_length(payload)) OVER (ORDER BY seq ROWS UNBOUNDED PRECEDING) AS bytes FROM (
					SELECT * FROM outbox
					WHERE available_at IS NULL AND shard = ANY($1) AND NOT $2::int8multirange @> seq
					  AND key NOT IN (SELECT unnest($3::text[])) AND topic <> ALL($5) AND seq > $6 `+topics+`
					ORDER BY seq LIMIT $4) AS next
			) AS next
			WHERE bytes - octet_length(payload) < $7
			ORDER BY seq`, args...).
			Query(func(found pgx.Rows) error {
				rows, err = pgx.CollectRows(found, pgx.RowToStructByPos[row])

				return err
			})
	}

	if batch.Len() == 0 {
		return nil, 0, nil
	}

	if err := conn.SendBatch(ctx, batch).Close(); err != nil {
		return nil, 0, fmt.Errorf("reading outbox: %w", err)
	}

	return rows, xmin, nil
}

// topics returns an SQL condition that selects the target's topics, and args followed
// by the argument of the condition.
func (r *link) topics(args ...any) (condition string, all []any) {
	if len(r.target.Only) == 0 {
		return ``, args
	}

	return `AND topic = ANY($8)`, append(args, r.target.Only)
}

// broker returns the target's label in metrics.
func (r *link) broker() string { return cmp.Or(r.target.Name, "default") }

func (r *link) suspendedTopics() []string {
	if topics := r.suspended.Load(); topics != nil {
		return *topics
	}

	return nil
}

// returnSuspended returns the rows of suspended and refused topics to the table.
func (r *link) returnSuspended() {
	topics := r.stuck.refused()
	if r.target.Suspended != nil {
		topics = append(topics, r.target.Suspended()...)
	}

	if slices.Equal(topics, r.suspendedTopics()) {
		return
	}

	r.suspended.Store(&topics)

	if len(topics) > 0 {
		r.queue.dropTopics(topics)
	}
}

// drain waits until the lanes have finished their rows, and deletes the confirmed rows.
func (r *link) drain(ctx context.Context, conn *pgx.Conn, owned *shards) error {
	r.queue.close()

	drainCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.cfg.DrainTimeout)
	defer cancel()

	for !r.queue.idle() && drainCtx.Err() == nil {
		select {
		case <-r.wake:
		case <-drainCtx.Done():
		}
	}

	crashpoint.At(crashpoint.DrainPublished)

	confirmed := r.queue.takeConfirmed()

	sql, args := r.unconsumed.deletion(confirmed)

	if _, err := conn.Exec(drainCtx, sql, args...); err != nil {
		// They will be published again, and the inboxes will recognize them.
		r.logger.Warn("could not delete published messages", slog.Any("error", err), slog.Int("messages", len(confirmed)))
	}

	crashpoint.At(crashpoint.DrainDeleted)

	if err := owned.leave(drainCtx); err != nil {
		r.logger.Debug("the shards become free when the connection closes", slog.Any("error", err))
	}

	crashpoint.At(crashpoint.DrainReleased)

	return nil
}

// lane publishes one run at a time.
func (r *link) lane(ctx context.Context, publisher message.Publisher) {
	for {
		next, ok := r.queue.next()
		if !ok {
			return
		}

		if slices.ContainsFunc(next, r.stuck.refuses) {
			if len(next) > 1 {
				r.split(next)
			} else {
				r.giveBack(next[0])
			}

			continue
		}

		crashpoint.At(crashpoint.RelayPublishing)

		switch err := r.publish(ctx, publisher, next); {
		case err != nil && len(next) > 1:
			r.split(next)
		case err != nil:
			r.unpublished(ctx, next[0], err)
		default:
			crashpoint.At(crashpoint.RelayPublished)
			r.confirm(next)
			crashpoint.At(crashpoint.RelayConfirmed)
		}
	}
}

// split lets the rows of a run be published one by one. It nudges the session because a
// drain waits for the lanes.
func (r *link) split(next []row) {
	r.queue.split(next)
	r.nudge()
}

// publish sends a run to the broker once the breaker allows an attempt.
func (r *link) publish(ctx context.Context, publisher message.Publisher, next []row) error {
	if r.target.Breaker == nil {
		return r.send(publisher, next)
	}

	attempt, err := r.target.Breaker.Wait(ctx)
	if err != nil {
		return err
	}

	err = r.send(publisher, next)
	if refused := refusal(err); err == nil || refused != nil && refused.Scope != driver.Account {
		attempt.Answered()
	} else {
		attempt.Failed(err)
	}

	return err
}

// send gives a run to the broker, the rows of one topic after those of another: there is
// no order between topics.
func (r *link) send(publisher message.Publisher, next []row) error {
	for _, rows := range byTopic(next) {
		started := time.Now()

		if err := publisher.Publish(rows[0].Topic, postgres.Column(rows, toWatermill)...); err != nil {
			return err
		}

		r.metrics.publish.WithLabelValues(r.broker()).Observe(time.Since(started).Seconds())
	}

	return nil
}

// byTopic groups rows, in the order of each topic's first row.
func byTopic(rows []row) (groups [][]row) {
	for _, r := range rows {
		i := slices.IndexFunc(groups, func(group []row) bool { return group[0].Topic == r.Topic })
		if i < 0 {
			i, groups = len(groups), append(groups, nil)
		}

		groups[i] = append(groups[i], r)
	}

	return groups
}

func (r *link) confirm(published []row) {
	freed := false

	for _, row := range published {
		r.unconsumed.add(row)
		freed = r.stuck.remove(row.Topic) || freed
		r.metrics.published.WithLabelValues(row.Topic).Inc()
		r.metrics.delay.WithLabelValues(row.Topic).Observe(max(time.Since(row.CreatedAt), 0).Seconds())
	}

	if r.queue.published(published, r.cfg.BatchSize/4) || freed {
		r.nudge()
	} else if !r.deletion.Swap(true) {
		time.AfterFunc(deleteAfter, r.deleteSoon)
	}
}

// deleteSoon starts a round if confirmed rows have not been deleted by another one.
func (r *link) deleteSoon() {
	r.deletion.Store(false)

	if r.queue.hasConfirmed() {
		r.nudge()
	}
}

// unpublished decides what becomes of a row that was not published: a message or a topic
// that the broker refuses does not delay others, and anything else is retried.
func (r *link) unpublished(ctx context.Context, failed row, err error) {
	switch refused := refusal(err); {
	case refused == nil || refused.Scope == driver.Account,
		// Many keys backing off would leave no space for other topics.
		refused.Scope == driver.OnePartition && r.queue.backingOff(failed.Topic) < r.cfg.MaxInFlight/2:
		r.backOff(ctx, failed, err)
	case refused.Scope == driver.OneTopic || refused.Scope == driver.OnePartition:
		r.metrics.errors.WithLabelValues(failed.Topic).Inc()
		r.refuseTopic(failed, refused)
	default:
		r.metrics.errors.WithLabelValues(failed.Topic).Inc()
		r.refuseMessage(failed, refused)
	}
}

// backOff delays a key after a failure. Other keys continue.
func (r *link) backOff(ctx context.Context, failed row, err error) {
	// The probe of a refused topic also backs off: otherwise it would be retried
	// immediately.
	if slices.Contains(r.suspendedTopics(), failed.Topic) && !slices.Contains(r.stuck.refused(), failed.Topic) {
		r.giveBack(failed)

		return
	}

	wait, stuck := r.queue.failed(failed)

	if ctx.Err() != nil {
		r.nudge() // the drain waits for the lanes

		return // the row stays in the table
	}

	r.metrics.errors.WithLabelValues(failed.Topic).Inc()

	if stuck {
		r.stuck.add(failed.Topic, err)
		r.logger.LogAttrs(ctx, slog.LevelWarn, "message cannot be published; later messages with its key are blocked",
			append(failed.traceAttrs(), slog.String("topic", failed.Topic), slog.String("message_id", failed.ID.String()), slog.Any("error", err))...)
	}

	time.AfterFunc(backoff.Jitter(wait), func() {
		r.queue.release(failed.Key)
		r.nudge()
	})
}

// listen wakes the relay when another process has committed rows or moved shards.
func (r *link) listen(ctx context.Context) {
	for ctx.Err() == nil {
		if err := r.receive(ctx); err != nil && ctx.Err() == nil {
			// Only the wake-up is lost: polling continues.
			r.logger.Debug("lost the notification connection; reconnecting", slog.Any("error", err))
			_ = backoff.Sleep(ctx, sessionRetry)
		}
	}
}

func (r *link) receive(ctx context.Context) error {
	conn, err := r.connect(ctx)
	if err != nil {
		return err
	}

	defer func() {
		closeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), sessionRetry)
		defer cancel()

		_ = conn.Close(closeCtx)
	}()

	if _, err := conn.Exec(ctx, "LISTEN "+Channel); err != nil {
		return fmt.Errorf("listening: %w", err)
	}

	// Shards may already have moved.
	r.moved.Store(true)
	r.nudge()

	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return fmt.Errorf("waiting for notification: %w", err)
		}

		if n.Payload == moved {
			r.moved.Store(true)
		}

		r.nudge()
	}
}

// toWatermill builds the message for the broker: CloudEvents headers and the
// unchanged payload.
func toWatermill(r row) *message.Message {
	id := r.ID.String()
	msg := message.NewMessage(id, r.Payload)

	msg.Metadata = make(message.Metadata, len(r.Headers)+10) // and up to ten of ours
	maps.Copy(msg.Metadata, r.Headers)

	msg.Metadata[event.HeaderKey] = r.Key
	msg.Metadata[event.HeaderID] = id
	msg.Metadata[event.HeaderSource] = event.Source
	msg.Metadata[event.HeaderType] = r.Topic
	msg.Metadata[event.HeaderSpecVersion] = "1.0"
	msg.Metadata[event.HeaderTime] = r.CreatedAt.UTC().Format(time.RFC3339Nano)
	msg.Metadata[event.HeaderContentType] = "application/json"
	msg.Metadata[event.HeaderCorrelation] = r.Correlation.String()

	if r.Trace != nil {
		msg.Metadata[event.HeaderTraceParent] = *r.Trace
	}

	if r.Causation != nil {
		msg.Metadata[event.HeaderCausation] = r.Causation.String()
	}

	return msg
}
