package mutate

import (
	"time"

	"github.com/millracehq/millrace/cmd/proof/crash"
	"github.com/millracehq/millrace/cmd/proof/server"
	"github.com/millracehq/millrace/internal/engine/crashpoint"
)

// Mutation is a bug: what a hurried change could do to the service.
type Mutation struct {
	Name, Means string
	// Edits put the bug into the source.
	Edits []Edit
	// Trials are expected to find it, the cheapest first.
	Trials []crash.Trial
	// Tests are Go tests that are expected to find it if no trial does: the name of a
	// package in internal, and a regular expression.
	Tests [][2]string
}

// Edit replaces a text that occurs exactly once in a file.
type Edit struct{ File, Old, New string }

// patience is how long a mutated service may make no progress.
const patience = 30 * time.Second

// on returns a trial on a broker.
func on(kind string, points ...crashpoint.Point) crash.Trial {
	return crash.Trial{Broker: kind, Points: points, Patience: patience}
}

// passes returns trials in which the process dies at several passes of a point.
func passes(kind string, point crashpoint.Point, numbers ...int) (list []crash.Trial) {
	for _, n := range numbers {
		list = append(list, crash.Trial{Broker: kind, Points: []crashpoint.Point{point}, Pass: n, Patience: patience})
	}

	return list
}

func trials(list ...crash.Trial) []crash.Trial { return list }

const (
	embedded, kafka, rabbitmq = server.Embedded, server.Kafka, server.RabbitMQ

	batch     = "internal/engine/consumer/batch.go"
	deliver   = "internal/engine/consumer/deliver.go"
	retry     = "internal/engine/consumer/retry.go"
	inbox     = "internal/engine/inbox/inbox.go"
	lane      = "internal/engine/broker/window/lane.go"
	window    = "internal/engine/broker/window/window.go"
	outbox    = "internal/engine/outbox/outbox.go"
	relay     = "internal/engine/outbox/relay.go"
	shards    = "internal/engine/outbox/shards.go"
	waiting   = "internal/engine/failed/waiting.go"
	decide    = "internal/shop/fulfilment/decide.go"
	save      = "internal/shop/fulfilment/batch.go"
	gateway   = "internal/shop/payment/gateway.go"
	publisher = "internal/engine/broker/embedded/embedded.go"
)

// Mutations are the bugs that the proof must find.
var Mutations = []Mutation{
	{
		"claimed before the transaction", "A message is recorded as applied before its effects are committed.",
		[]Edit{{batch, `	err = postgres.InPipeline(ctx, a.router.pool, first, func(tx pgx.Tx) (last *pgx.Batch, err error) {
		fresh, index, err := a.admit(ctx, tx, units, claimed)
		if err != nil || len(fresh) == 0 {
			return nil, err
		}
`, `	var (
		fresh []E
		index []int
	)

	err = postgres.InPipeline(ctx, a.router.pool, first, func(tx pgx.Tx) (_ *pgx.Batch, err error) {
		fresh, index, err = a.admit(ctx, tx, units, claimed)

		return nil, err
	})
	if err != nil || len(fresh) == 0 {
		return 0, err
	}

	err = postgres.InPipeline(ctx, a.router.pool, &pgx.Batch{}, func(tx pgx.Tx) (last *pgx.Batch, err error) {
`}},
		passes(embedded, crashpoint.Claimed, 1, 3, 5), nil,
	},
	{
		"claimed after the transaction", "A message is recorded as applied in another transaction, after its effects.",
		[]Edit{{batch, `	first := &pgx.Batch{}
	claimed := a.claim(first, units, repeated)

	err = postgres.InPipeline(ctx, a.router.pool, first, func(tx pgx.Tx) (last *pgx.Batch, err error) {
		fresh, index, err := a.admit(ctx, tx, units, claimed)
		if err != nil || len(fresh) == 0 {
			return nil, err
		}

		crashpoint.At(crashpoint.Claimed)

		last, caused, err = a.run(ctx, tx, a.handle, fresh)

		if err == nil {
			crashpoint.At(crashpoint.Committing)
		}

		return last, reindex(err, index)
	})

	return caused, err
`, `	verdicts, err := inbox.Seen(ctx, a.router.pool, a.consumer, claimsOf(units), nil)
	if err != nil {
		return 0, err
	}

	fresh, index, _, err := a.fresh(units, verdicts, nil, func(int) (bool, error) { return false, nil })
	if err != nil || len(fresh) == 0 {
		return 0, err
	}

	err = postgres.InPipeline(ctx, a.router.pool, &pgx.Batch{}, func(tx pgx.Tx) (last *pgx.Batch, err error) {
		last, caused, err = a.run(ctx, tx, a.handle, fresh)

		return last, reindex(err, index)
	})
	if err != nil {
		return caused, err
	}

	crashpoint.At(crashpoint.Committing)

	after := &pgx.Batch{}
	a.claim(after, units, true)

	return caused, a.router.pool.SendBatch(ctx, after).Close()
`}},
		passes(embedded, crashpoint.Committing, 2, 4, 6, 8), nil,
	},
	{
		"known messages applied", "A message that is already in the inbox is applied again.",
		[]Edit{{inbox, `		case fingerprint == e.Fingerprint:
			verdicts[i] = Duplicate`, `		case fingerprint == e.Fingerprint:
			verdicts[i] = Fresh`}},
		trials(on(embedded), on(embedded, crashpoint.Acking)), nil,
	},
	{
		"another body dropped", "Another body under a known id counts as a repetition and disappears.",
		[]Edit{{inbox, `			verdicts[i] = Conflict
		}
	}

	return verdicts`, `			verdicts[i] = Duplicate
		}
	}

	return verdicts`}},
		trials(on(embedded)), nil,
	},
	{
		"one inbox for all consumers", "The inbox is keyed by the id of the message alone.",
		[]Edit{
			{batch, `inbox.Claim(first, a.consumer, claimsOf(units))`, `inbox.Claim(first, "all", claimsOf(units))`},
			{batch, `inbox.ClaimNew(first, a.consumer, claimsOf(units))`, `inbox.ClaimNew(first, "all", claimsOf(units))`},
		},
		trials(on(embedded)), nil,
	},
	{
		"blocked messages claimed", "A message that is blocked stays in the inbox, as if it were applied.",
		[]Edit{{batch, `	if err := inbox.Unclaim(ctx, tx, a.consumer, claimsOf(behind)); err != nil {
		return nil, nil, err
	}

`, ``}},
		trials(on(embedded), on(embedded, crashpoint.FailedBlocked)), nil,
	},
	{
		"blocked messages let through", "A message is applied although an earlier one with its key waits.",
		[]Edit{{batch, `waits := u.from.entry == nil && found[u.from.stored]`, `waits := false`}},
		trials(on(embedded), on(rabbitmq)), nil,
	},
	{
		"results outside the transaction", "The events of a handler are committed to the outbox before its effects.",
		[]Edit{{batch, `	return writes, len(outgoing), a.router.queueOutgoing(writes, a.consumer, outgoing)
`, `	if err := a.router.queueOutgoing(writes, a.consumer, outgoing); err != nil {
		return nil, 0, err
	}

	return &pgx.Batch{}, len(outgoing), a.router.pool.SendBatch(ctx, writes).Close()
`}},
		passes(embedded, crashpoint.Committing, 2, 4, 6), nil,
	},
	{
		"acknowledged before the commit", "A message is acknowledged when it arrives.",
		[]Edit{{deliver, `	err := r.deliverAll(session, routes, msg, join(session, routes))
`, `	msg.Ack()

	err := r.deliverAll(session, routes, msg, join(session, routes))
`}},
		passes(rabbitmq, crashpoint.Committing, 1, 3, 5), nil,
	},
	{
		"stored after the acknowledgement", "A message that failed is stored in the background, while it is acknowledged.",
		[]Edit{{deliver, `		crashpoint.At(crashpoint.FailedKeeping)

		err = r.untilAvailable(func(ctx context.Context) error { return r.store(ctx, d, f) })
`, `		go func() {
			sleep(r.working, 200*time.Millisecond)
			crashpoint.At(crashpoint.FailedKeeping)

			_ = r.untilAvailable(func(ctx context.Context) error { return r.store(ctx, d, f) })
		}()
`}},
		passes(embedded, crashpoint.FailedKeeping, 1, 2), nil,
	},
	{
		"outages are a message's fault", "A message is stopped because Postgres was not available.",
		[]Edit{{batch, `			return ErrStopping
		case !postgres.IsUnavailable(err):`, `			return ErrStopping
		case postgres.IsUnavailable(err):
			permit.Abandoned()

			return event.Reject(err)
		case !postgres.IsUnavailable(err):`}},
		trials(on(embedded, crash.Disconnect), on(embedded, crash.Disconnect), on(rabbitmq, crash.Disconnect)), nil,
	},
	{
		"attempts forgotten", "The attempts of a message are counted anew each time it is tried.",
		[]Edit{{deliver, `		d.failures = entry.Attempts
`, `		d.failures = 0
`}},
		trials(on(embedded)), nil,
	},
	{
		"applied and still waiting", "A waiting message stays stored after it was applied.",
		[]Edit{{deliver, `		err = r.untilAvailable(func(ctx context.Context) error { return r.failed.Finish(ctx, *d.entry) })
`, ``}},
		trials(on(embedded)), nil,
	},
	{
		"leases kept", "A key stays leased after its messages were tried.",
		[]Edit{{retry, `				r.endLease(ctx, lease, wait)
`, `				_ = wait
`}},
		trials(on(embedded)), nil,
	},
	{
		"leases ignored", "A key is leased to whoever asks, although somebody tries its messages.",
		[]Edit{{waiting, ` AND (d.leased_until IS NULL OR d.leased_until <= clock_timestamp())`, ``}},
		trials(on(embedded), on(embedded, crash.Second)), [][2]string{{"engine/failed", "Lease"}},
	},
	{
		"the newest first", "Of the waiting messages with a key, the newest is tried first.",
		[]Edit{{waiting, `ORDER BY id LIMIT 1` + "`" + `, k.Consumer, k.Key, running, after)`, `ORDER BY id DESC LIMIT 1` + "`" + `, k.Consumer, k.Key, running, after)`}},
		trials(on(embedded)), nil,
	},
	{
		"a lane that reorders", "A lane delivers the newest message with its key first.",
		[]Edit{{lane, `	next := l.waiting[0]
	l.waiting[0] = nil
	l.waiting = l.waiting[1:]
`, `	next := l.waiting[len(l.waiting)-1]
	l.waiting = l.waiting[:len(l.waiting)-1]
`}},
		nil, [][2]string{{"engine/broker/window", ""}},
	},
	{
		"a prefix with a gap", "Everything up to the newest finished message is marked, although an earlier one is in hand.",
		[]Edit{{window, `	for n < len(w.order) && w.order[n].finished {
		n++
	}
`, `	for i, held := range w.order {
		if held.finished {
			n = i + 1
		}
	}
`}},
		passes(rabbitmq, crashpoint.WindowMarked, 2, 5, 9), [][2]string{{"engine/broker/window", ""}},
	},
	{
		"returned messages acknowledged", "A message that the service returns as it stops counts as acknowledged.",
		[]Edit{{lane, `		if isClosed(i.msg.Acked()) {`, `		if ended || isClosed(i.msg.Acked()) {`}},
		trials(on(rabbitmq, crash.Restart), on(rabbitmq, crash.Restart), on(rabbitmq, crashpoint.DrainSettled)), [][2]string{{"engine/broker/window", ""}},
	},
	{
		"returned rows deleted", "The embedded broker confirms a message that the service returns as it stops.",
		[]Edit{{publisher, `		case err != nil && p.closing.Err() != nil:
			return driver.ErrClosed
		case err != nil:
			return errNacked
`, `		case err != nil:
			return nil
`}},
		trials(on(embedded, crash.Restart), on(embedded, crash.Restart), on(embedded, crashpoint.DrainPublished)), nil,
	},
	{
		"deleted before the confirmation", "A row is marked as published before it is.",
		[]Edit{{relay, `		switch err := r.publish(ctx, publisher, next); {
		case err != nil && len(next) > 1:
			r.split(next)
		case err != nil:
			r.unpublished(ctx, next[0], err)
		default:
			crashpoint.At(crashpoint.RelayPublished)
			r.confirm(next)
			crashpoint.At(crashpoint.RelayConfirmed)
		}
`, `		r.confirm(next)

		if err := r.publish(ctx, publisher, next); err != nil {
			r.unpublished(ctx, next[0], err)
		}
`}},
		passes(embedded, crashpoint.RelayDeleted, 1, 3, 5), nil,
	},
	{
		"the relay stops in the middle", "The relay loses its session when the service stops, with rows that were published.",
		[]Edit{{relay, `	work := context.WithoutCancel(ctx)
`, `	work := ctx
`}},
		nil, [][2]string{{"engine/outbox", "TestARelayThatStopsCompletesItsStatement"}},
	},
	{
		"shards without an owner", "Each process publishes all shards.",
		[]Edit{{shards, `		if got {
`, `		if got || true {
`}, {shards, `	share := (Shards + max(members, 1) - 1) / max(members, 1)
`, `	share := Shards
`}},
		trials(on(embedded, crash.Second), on(embedded, crash.Second)), nil,
	},
	{
		"rows in the wrong order", "The rows of a transaction get their numbers in the wrong order.",
		[]Edit{{outbox, `		ORDER BY n` + "`" + `,
		r.shards`, `		ORDER BY n DESC` + "`" + `,
		r.shards`}},
		trials(on(rabbitmq)), nil,
	},
	{
		"no key for the provider", "Each request to charge an order has a key of its own.",
		[]Edit{{gateway, `	return "millrace-charge-" + c.OrderID + "-" + strconv.Itoa(c.attempt())
`, `	return "millrace-charge-" + c.OrderID + "-" + strconv.FormatInt(time.Now().UnixNano(), 10)
`}},
		trials(on(embedded, crashpoint.Charged)), nil,
	},
	{
		"late captures ignored", "A capture of an order that has ended is forgotten.",
		[]Edit{{decide, `	default:
		d.record(order.CapturedLate{TransactionID: transactionID, Attempt: attempt})
		d.refund(transactionID)
`, ``}},
		trials(on(embedded)), nil,
	},
	{
		"late captures kept", "A capture of an order that has ended is recorded and not refunded.",
		[]Edit{{decide, `		d.record(order.CapturedLate{TransactionID: transactionID, Attempt: attempt})
		d.refund(transactionID)
`, `		d.record(order.CapturedLate{TransactionID: transactionID, Attempt: attempt})
`}},
		trials(on(embedded)), nil,
	},
	{
		"stock given back twice", "An order that ends gives its stock back twice.",
		[]Edit{{save, `	b.process.inventory.Sell(`, `	b.process.inventory.Release(writes, b.stock[ReleaseStock])
	b.process.inventory.Sell(`}},
		trials(on(embedded)), nil,
	},
}
