// Package chaos runs replicas of the service while everything around them fails, as a seed
// decides, and then checks that nothing is lost, doubled or out of order.
package chaos

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/millracehq/millrace/cmd/proof/checker"
	"github.com/millracehq/millrace/cmd/proof/record"
	"github.com/millracehq/millrace/cmd/proof/server"
	"github.com/millracehq/millrace/cmd/proof/wire"
	"github.com/millracehq/millrace/cmd/proof/workload"
)

// options describe a run.
type options struct {
	seed           uint64
	kind, service  string
	duration       time.Duration
	replicas, rate int
}

// Report is the result of a run.
type Report struct {
	Seed     uint64 `json:"seed"`
	Broker   string `json:"broker"`
	Replicas int    `json:"replicas"`
	// Messages counts what was sent, by topic, with copies.
	Messages map[string]int `json:"messages"`
	// Faults counts what was survived, by kind.
	Faults map[string]int `json:"faults"`
	// Counts has further figures.
	Counts map[string]int `json:"counts"`
	// Rest is how long it took until nothing was left to do, in seconds.
	Rest       float64             `json:"rest_seconds"`
	Violations []checker.Violation `json:"violations"`
	// Dir has logs and data, if there are violations.
	Dir string `json:"dir,omitempty"`
	// Error says why the run could not be completed.
	Error string `json:"error,omitempty"`
}

// patience is how long it may take, once all faults are removed, until nothing is left to
// do.
const patience = 4 * time.Minute

// run is one run.
type run struct {
	options

	world  *world
	record *record.Record
	began  time.Time
	log    *os.File

	mu     sync.Mutex
	report Report
}

// Run runs a seed. It returns an error only if the run itself failed.
func Run(ctx context.Context, o options) (report Report, err error) {
	r := &run{options: o, began: time.Now(), report: Report{
		Seed: o.seed, Broker: o.kind, Replicas: o.replicas, Messages: map[string]int{}, Faults: map[string]int{}, Counts: map[string]int{},
	}}

	r.record = workload.New(o.seed, workload.Size{Rate: o.rate, Duration: o.duration, Products: 12, Stock: 150, Aborted: o.kind == server.Kafka})
	r.record.Broker = o.kind
	r.record.Secrets = append(r.record.Secrets, secretKey)

	if r.world, err = newWorld(ctx, o); r.world == nil {
		return r.report, err
	}

	defer func() {
		r.world.close()

		if err == nil && len(r.report.Violations) == 0 {
			err = os.RemoveAll(r.world.dir)
			report = r.report

			return
		}

		r.report.Dir = r.world.dir
		report = r.report
	}()

	if err != nil {
		return r.report, err
	}

	if r.log, err = os.Create(filepath.Join(r.world.dir, "chaos.log")); err != nil {
		return r.report, err
	}
	defer func() { _ = r.log.Close() }()

	return r.report, r.all(ctx)
}

func (r *run) logf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()

	fmt.Fprintf(r.log, "%s %6.1fs %s\n", time.Now().UTC().Format("15:04:05.000"), time.Since(r.began).Seconds(), fmt.Sprintf(format, args...))
}

func (r *run) survived(kind string) {
	r.mu.Lock()
	defer r.mu.Unlock()

	r.report.Faults[kind]++
}

func (r *run) count(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()

	r.report.Counts[what]++
}

func (r *run) all(ctx context.Context) error {
	if err := r.world.prepare(ctx, r.record.Stock); err != nil {
		return err
	}

	r.logf("replicas are ready")

	offsets := &wire.Offsets{Kafka: r.world.kafka, DB: r.world.db}
	faults := schedule(r.seed, r.kind, r.duration)
	work, inner := errgroup.WithContext(ctx)
	background, end := context.WithCancel(inner)

	defer end()

	r.lie(true)

	go r.world.supervise(background)

	if r.world.kafka != nil {
		work.Go(func() error {
			r.watch(background, offsets)

			return nil
		})
	}

	for _, m := range toEdit(r.record) {
		work.Go(func() error { return r.repair(inner, m) })
		r.record.Edited[m.ID] = editedPayload(m)
	}

	work.Go(func() error {
		defer end()

		var load errgroup.Group

		load.Go(func() error { return r.publish(inner) })
		r.inflict(inner, faults)

		return errors.Join(r.quiet(inner), load.Wait(), r.rest(inner))
	})

	if err := work.Wait(); err != nil {
		return err
	}

	r.record.Findings = append(r.record.Findings, offsets.Passed...)
	r.report.Counts["records below committed offsets"] = offsets.Records

	return r.check(context.WithoutCancel(ctx))
}

// lie makes other systems unreliable, or reliable again.
func (r *run) lie(begin bool) {
	percent := 0
	if begin {
		percent = 10
	}

	r.world.provider.Lie(percent)
	r.world.mail.Fail(percent)
	r.world.webhooks.Fail(percent)
}

// watch compares committed offsets with the database, whenever both answer.
func (r *run) watch(ctx context.Context, o *wire.Offsets) {
	for pause(ctx, 300*time.Millisecond) {
		_ = o.Sample(ctx) // it changes nothing if it fails
	}
}

// publish sends the load. A message is sent again until it is confirmed, so it may be on
// its topic more often than it was meant to be.
func (r *run) publish(ctx context.Context) error {
	began := time.Now()

	for next := 0; next < len(r.record.Messages); {
		if !pause(ctx, 40*time.Millisecond) {
			return ctx.Err()
		}

		// No key is in a batch twice: if a broker takes a part of it, order is kept.
		var batch []*record.Message

		keys := map[string]bool{}

		for ; next < len(r.record.Messages) && len(batch) < 100; next++ {
			m := r.record.Messages[next]
			if m.At > time.Since(began) || keys[m.Topic+m.Key] && m.Key != "" {
				break
			}

			keys[m.Topic+m.Key] = true
			batch = append(batch, m)
		}

		if err := r.send(ctx, batch); err != nil {
			return err
		}
	}

	return nil
}

// publishTimeout is how long the broker may take to confirm messages before they are sent
// again. It is short, so that most are sent while faults last, and not afterwards.
const publishTimeout = 5 * time.Second

func (r *run) send(ctx context.Context, batch []*record.Message) error {
	var list, aborted []wire.Message

	for _, m := range batch {
		out := wire.Message{Topic: m.Topic, Key: m.Key, Keyless: m.Keyless || m.Key == "", ID: m.ID, Payload: m.Payload, Number: m.Number}
		if m.Fate == record.Aborted {
			aborted = append(aborted, out)
		} else {
			list = append(list, out)
		}

		r.report.Messages[m.Topic]++
	}

	if len(aborted) > 0 && r.world.kafka != nil {
		// The transaction is aborted by the broker if this fails.
		_ = r.world.kafka.Abort(fmt.Sprintf("proof-%d", aborted[0].Number), aborted)

		r.report.Counts["aborted transactions"]++
	}

	for len(list) > 0 {
		attempt, cancel := context.WithTimeout(ctx, publishTimeout)
		err := r.world.wire.Publish(attempt, list)

		cancel()

		if err == nil {
			break
		}

		r.logf("publishing: %v", err)
		r.report.Counts["publications repeated"]++

		if !pause(ctx, 200*time.Millisecond) {
			return ctx.Err()
		}

		if err := r.world.wire.Reset(); err != nil {
			r.logf("reconnecting: %v", err)
		}
	}

	for _, m := range batch {
		m.Sent = true
	}

	return nil
}

// quiet removes all faults.
func (r *run) quiet(ctx context.Context) error {
	r.logf("quiet")
	r.lie(false)

	// A fault that could not restart a server has left it down.
	errs := []error{r.world.postgres.Start(ctx), r.world.broker.Start(ctx), r.world.toPostgres.Heal()}
	r.world.toPostgres.Drop(0)

	if r.world.toBroker != nil {
		errs = append(errs, r.world.toBroker.Heal())
		r.world.toBroker.Drop(0)
	}

	errs = append(errs, server.Until(ctx, "consumers to be resumed", patience, func() (bool, error) {
		for _, consumer := range consumersToPause() {
			if _, err := r.world.request(ctx, "POST", "/consumers/"+consumer+"/resume", why{Why: "proof"}); err != nil {
				return false, nil //nolint:nilerr // tried again
			}
		}

		return true, nil
	}))

	return errors.Join(errs...)
}

// rest waits until nothing is left to do. If that takes too long, the checker says what is.
func (r *run) rest(ctx context.Context) error {
	began, calm := time.Now(), 0
	reason := ""

	err := server.Until(ctx, "rest", patience, func() (bool, error) {
		if reason = r.busy(ctx); reason != "" {
			calm = 0
		} else {
			calm++
		}

		return calm >= 5, ctx.Err()
	})

	r.report.Rest = time.Since(began).Seconds()

	if err != nil && ctx.Err() == nil {
		r.logf("no rest: %s", reason)
		r.report.Violations = append(r.report.Violations, checker.Violation{
			Invariant: checker.Stuck, Subject: "the service", Expected: "rest within " + patience.String(), Found: reason,
		})

		return nil
	}

	return err
}

// busy says what is left to do, or returns "".
func (r *run) busy(ctx context.Context) string {
	var outbox, waiting, keys, orders, behind int

	err := r.world.db.QueryRow(ctx, `
		SELECT (SELECT count(*) FROM outbox), (SELECT count(*) FROM failed_messages WHERE state = 'waiting'),
			(SELECT count(*) FROM failed_keys WHERE due_at IS NOT NULL OR leased_until IS NOT NULL),
			(SELECT count(*) FROM orders o WHERE status IN ('created', 'inventory_reserved', 'paid')
				AND NOT EXISTS (SELECT FROM failed_messages f WHERE f.key = o.id AND f.state = 'stopped')),
			(SELECT count(*) FROM (SELECT substr(stream, 6) AS id, count(*) AS n FROM events WHERE stream LIKE 'user-%' GROUP BY 1) e
				LEFT JOIN users u USING (id) WHERE u.version IS DISTINCT FROM e.n)`).Scan(&outbox, &waiting, &keys, &orders, &behind)
	if err != nil {
		return err.Error()
	}

	if outbox+waiting+keys+orders+behind > 0 {
		return fmt.Sprintf("%d rows in the outbox, %d waiting messages, %d keys due or leased, %d orders in flight, %d users not projected", outbox, waiting, keys, orders, behind)
	}

	backlog, err := r.world.wire.Backlog(ctx)

	switch {
	case err != nil:
		_ = r.world.wire.Reset()

		return err.Error()
	case backlog > 0:
		return fmt.Sprintf("%d messages at the broker", backlog)
	}

	return r.unrecorded(ctx)
}

// unrecorded says how many of the messages are nowhere.
func (r *run) unrecorded(ctx context.Context) string {
	ids := map[string][]uuid.UUID{}

	for _, m := range r.record.Messages {
		if m.ID != uuid.Nil && m.Fate != record.Aborted {
			ids[m.Topic] = append(ids[m.Topic], m.ID)
		}
	}

	for topic, list := range ids {
		missing, err := wire.Unrecorded(ctx, r.world.db, wire.Consumers[topic], list)
		if err != nil {
			return err.Error()
		}

		if len(missing) > 0 {
			return fmt.Sprintf("%d messages on %s are neither applied nor failed, such as %s", len(missing), topic, missing[0])
		}
	}

	return ""
}

// check collects what everybody knows, and runs the checker.
func (r *run) check(ctx context.Context) error {
	for _, s := range r.world.slots {
		r.report.Counts["replicas started"] += s.fleet.Started
	}

	if err := r.world.drain(); err != nil {
		r.report.Violations = append(r.report.Violations, checker.Violation{Invariant: checker.Stuck, Subject: "SIGTERM", Expected: "replicas that drain", Found: err.Error()})
	}

	r.report.Counts["replicas that ended on their own"] = r.world.died()
	r.record.Logs = r.world.logs()
	r.record.Charges, r.record.Mails, r.record.Webhooks = r.world.provider.Charges(), r.world.mail.Accepted(), r.world.webhooks.Accepted()

	if err := r.collect(ctx); err != nil {
		return err
	}

	if err := r.record.Save(filepath.Join(r.world.dir, "record.json")); err != nil {
		return err
	}

	found, err := checker.Check(ctx, r.world.db, r.record)
	r.report.Violations = append(r.report.Violations, found...)

	maps.Copy(r.report.Faults, r.world.provider.Lies())
	r.report.Faults["mail server failing"] += r.world.mail.Failed()
	r.report.Faults["webhook receiver failing"] += r.world.webhooks.Failed()
	r.report.Counts["answers to COMMIT dropped"] = r.world.toPostgres.Dropped()

	if r.world.toBroker != nil {
		r.report.Counts["confirmations dropped"] = r.world.toBroker.Dropped()
	}

	return err
}

// collect reads the topics.
func (r *run) collect(ctx context.Context) error {
	if r.kind == server.Embedded {
		return nil
	}

	r.record.Topics = map[string][]record.Published{}
	topics := wire.Outputs

	if r.kind == server.RabbitMQ {
		topics = []string{observer}
	} else {
		for topic := range wire.Consumers {
			topics = append(topics, topic)
		}
	}

	for _, topic := range topics {
		list, err := r.world.wire.Published(ctx, topic)
		if err != nil {
			return err
		}

		for _, p := range list {
			r.record.Topics[p.Topic] = append(r.record.Topics[p.Topic], record.Published{ID: p.ID, Causation: p.Causation, Place: p.String(), Offset: p.Offset, Value: p.Value})
		}
	}

	return nil
}
