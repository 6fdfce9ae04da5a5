package consumer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/google/uuid"

	"github.com/millracehq/millrace/internal/engine/backoff"
	"github.com/millracehq/millrace/internal/engine/crashpoint"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/inbox"
	"github.com/millracehq/millrace/internal/engine/line"
	"github.com/millracehq/millrace/internal/engine/scrub"
	"github.com/millracehq/millrace/internal/engine/span"
)

// delivery is one message on its way to one consumer. It is immutable after
// newDelivery.
type delivery struct {
	route *Route
	msg   *message.Message
	id    uuid.UUID
	// meta identifies the message to its handler.
	meta event.Meta
	// span is the span of the delivery, or nil if the message is not traced.
	span *span.Span
	// entry is the failed message being retried, or nil if a broker delivered the
	// message.
	entry *failed.Entry
	// failures counts the previous failures.
	failures int
	// ahead is true if the message is tried before an earlier one with its key, because
	// the earlier one awaits a message on the same topic.
	ahead bool
	// waited is the time since the message was first found to await another one, or 0.
	waited time.Duration
	// shared is true if other consumers receive the message too. The message is then
	// parked while this consumer is suspended, so that the others can continue.
	shared bool
	// maxWait bounds how long the message stays in memory while its consumer is
	// suspended.
	maxWait time.Duration
	// session ends when the broker takes the message back: its partition or its
	// connection is lost, so another process receives the message. A message that is
	// still waiting gives way; one that is being applied is completed.
	session context.Context //nolint:containedctx // it is a lifetime that outlasts no call
	// key orders the message. For a malformed payload it holds whatever could be
	// read.
	key string
	// place is the message's place in its line at the consumer, or nil.
	place *place
	// stored is the key as stored in the tables of failed messages; see failed.StoredKey.
	stored string
	// claim identifies the message in the inbox.
	claim inbox.Entry
	// apply makes one attempt. The handler sees overdue as event.Meta.Overdue.
	apply func(overdue bool) error
}

// newDelivery decodes msg for a consumer.
func (r *Router) newDelivery(session context.Context, route *Route, msg *message.Message, entry *failed.Entry, shared bool) *delivery {
	d := &delivery{
		session: session, route: route, msg: msg, id: messageID(msg), entry: entry, shared: shared, maxWait: maxWaitBroker,
	}

	d.meta = event.MetaOf(d.id, d.headers())
	d.span = r.tracer.Deliver(d.meta, span.Delivery{
		Consumer: route.Consumer, Topic: route.Topic, Origin: msg.Metadata.Get(event.HeaderOrigin), Bytes: len(msg.Payload),
	})
	d.span.Identify(&d.meta)

	if entry != nil {
		d.failures = entry.Attempts
	}

	switch {
	case shared:
		d.maxWait = 0
	case entry != nil || strings.HasPrefix(msg.Metadata.Get(event.HeaderOrigin), "embedded:"):
		d.maxWait = maxWaitOutbox
	}

	if err := r.decoders.decode(d); err != nil {
		d.apply = func(bool) error { return err }
	}

	return d
}

// headers returns the message's original headers.
func (d *delivery) headers() event.Headers { return event.Headers(d.msg.Metadata) }

// failed builds the entry to store for the message.
func (d *delivery) failed(f fate) failed.Entry {
	e := failed.Entry{
		Consumer: d.route.Consumer, Topic: d.route.Topic, MessageID: d.id, Origin: d.msg.Metadata.Get(event.HeaderOrigin),
		Key: cmp.Or(d.key, d.msg.Metadata.Get(event.HeaderKey)), Payload: event.Content(d.msg.Payload),
	}

	if d.entry != nil {
		e = *d.entry
	} else {
		e.Headers = maps.Clone(d.headers())
		maps.DeleteFunc(e.Headers, func(name, _ string) bool { return strings.HasPrefix(name, event.ReservedPrefix) })
	}

	e.Attempts = f.attempts

	if f.err != nil {
		e.Reason, e.Error = reasonOf(f.err), scrub.Text(f.err.Error())
	}

	return e
}

// loggable returns a fate's error for the log. If the message has personal data,
// the error may quote it, so the log gets only the cause; the failed message keeps the
// full error.
func (d *delivery) loggable(f fate) string {
	if _, personal := d.route.Payload.(event.Personal); personal {
		return failed.Cause(d.failed(f))
	}

	return f.err.Error()
}

// failure describes an attempt's error for its span. Both results are empty if
// there is nothing to describe.
func (d *delivery) failure(err error) (reason, text string) {
	if d.span == nil || err == nil || isReturn(err) {
		return "", ""
	}

	return string(reasonOf(err)), scrub.Text(d.loggable(fate{err: err}))
}

// outcome is the result of a delivery.
type outcome string

// Outcomes. All except returned acknowledge the message.
const (
	applied  outcome = "applied"
	stopped  outcome = "stopped"
	parked   outcome = "parked"
	blocked  outcome = "blocked"
	returned outcome = "returned"
)

// fate is the outcome of a delivery and the reason for it.
type fate struct {
	outcome outcome
	// err says why the message was not applied.
	err error
	// attempts counts the failed attempts.
	attempts int
	// wait is how long the message is parked.
	wait time.Duration
	// awaits lists the topics of the message that a parked one awaits.
	awaits []string
}

// deliver attempts to apply a message, decides its fate and carries it out. The
// broker redelivers a returned message; any other fate is final.
func (r *Router) deliver(d *delivery) fate {
	started := time.Now()
	f := r.carryOut(d, d.inTurn(r.decide(d, r.attempt(d))))

	r.report(d, f, time.Since(started))

	return f
}

// attempt tries a message, with the immediate retries that its topic's policy allows.
func (r *Router) attempt(d *delivery) error {
	if err := r.forgotten(d); err != nil { // before a pause parks the message: a failed message is not checked
		return err
	}

	if err := r.awaitResume(d); err != nil {
		return err
	}

	err := r.try(d, false)

	early, isEarly := errors.AsType[*event.EarlyError](err)
	if !isEarly || d.ahead {
		return err
	}

	switch overdue, held := r.overdue(d, early); {
	case overdue:
	case held != "":
		return fmt.Errorf("%w: %s", err, held)
	default:
		return err
	}

	err = r.try(d, true)
	if early, isEarly = errors.AsType[*event.EarlyError](err); isEarly {
		return early.Err // now a failure like any other
	}

	return err
}

func (r *Router) try(d *delivery, overdue bool) error {
	apply := middleware.Recoverer(func(*message.Message) ([]*message.Message, error) { return nil, d.apply(overdue) })

	_, err := apply(d.msg)
	if err == nil {
		return nil
	}

	return r.retryQuickly(d, apply, err)
}

// retryQuickly tries a message again that has failed with err. Watermill's Retry allocates
// for each message, and takes much of a goroutine's stack, but few messages fail. Only those
// go through it, and its first try returns the error they already have.
func (r *Router) retryQuickly(d *delivery, apply message.HandlerFunc, err error) error {
	tried := true
	_, err = quickRetries(r.configOf(d.route.Topic)).Middleware(func(msg *message.Message) ([]*message.Message, error) {
		if tried {
			tried = false

			return nil, err
		}

		return apply(msg)
	})(d.msg)

	return err
}

// errLineBroken returns a message because one ahead of it was returned, or because the
// broker has taken back the messages with its key.
var errLineBroken = errors.New("an earlier message with the same key was returned to the broker")

// errBlocked reports that a message is blocked by an earlier one with its key.
var errBlocked = errors.New("the message is blocked by an earlier one with its key")

// decide determines the fate of a message from its last attempt's error.
func (r *Router) decide(d *delivery, err error) fate {
	switch {
	case err == nil:
		return fate{outcome: applied}
	case errors.Is(err, errBlocked):
		return fate{outcome: blocked}
	case d.shared && errors.Is(err, ErrSuspended):
		return fate{outcome: parked, err: err} // due now, but not retried while the consumer is suspended
	case isReturn(err):
		return fate{outcome: returned, err: err}
	}

	f := fate{outcome: stopped, err: err, attempts: d.failures + 1}
	cfg := r.configOf(d.route.Topic)
	later, _ := errors.AsType[*event.LaterError](err)

	early, isEarly := errors.AsType[*event.EarlyError](err)

	switch {
	case isEarly: // not a failure
		f.outcome, f.attempts, f.wait, f.awaits = parked, d.failures, cfg.await(d.waited), early.Topics
	case isRejection(err):
	case isPending(err):
		f.outcome, f.wait, f.attempts = parked, later.After, d.failures
	case f.attempts <= cfg.ParkAttempts:
		f.outcome, f.wait = parked, cfg.wait(f.attempts, later)
	case cfg.ParkAttempts > 0:
		f.err = event.RejectAs(reasonOf(err), fmt.Errorf("gave up after %d attempts: %w", f.attempts, err))
	}

	return f
}

// inTurn makes a message that must be stored wait until it is first in its line. A
// message that reached no batch, because it is invalid or its consumer is suspended, may
// get here before its turn.
func (d *delivery) inTurn(f fate) fate {
	if d.place == nil || f.outcome != stopped && f.outcome != parked || d.route.lines.awaitTurn(d.place) {
		return f
	}

	return fate{outcome: returned, err: errLineBroken}
}

// isReturn reports whether err returns the message unacknowledged: the service is
// stopping or the consumer is suspended, which is not the message's fault.
func isReturn(err error) bool {
	return errors.Is(err, ErrStopping) || errors.Is(err, ErrSuspended) || errors.Is(err, errLineBroken) || errors.Is(err, context.Canceled)
}

// isPending reports whether err is a preliminary answer from another system.
func isPending(err error) bool {
	later, ok := errors.AsType[*event.LaterError](err)

	return ok && later.Pending
}

func isRejection(err error) bool {
	_, rejected := errors.AsType[*event.RejectError](err)

	return rejected
}

// storePause is how long a message whose fate could not be stored stays in memory before
// it is returned to its broker.
const storePause = 5 * time.Second

// carryOut stores the fate in Postgres and retries until that succeeds: a message
// that is neither applied nor stored must not be acknowledged.
func (r *Router) carryOut(d *delivery, f fate) fate {
	var err error

	switch {
	case f.outcome == stopped || f.outcome == parked:
		crashpoint.At(crashpoint.FailedKeeping)

		err = r.untilAvailable(func(ctx context.Context) error { return r.store(ctx, d, f) })

		crashpoint.At(crashpoint.FailedKept)
	case f.outcome == applied && d.entry != nil:
		crashpoint.At(crashpoint.FailedApplied)

		err = r.untilAvailable(func(ctx context.Context) error { return r.failed.Finish(ctx, *d.entry) })

		crashpoint.At(crashpoint.FailedFinished)
	}

	switch {
	case err == nil:
		r.awaited.add(f.awaits)

		return f
	case f.outcome == parked && !isReturn(err): // it cannot be parked
		f.outcome = stopped

		return r.carryOut(d, f)
	default:
		if !isReturn(err) {
			sleep(r.working, backoff.Jitter(storePause)) // the broker may redeliver it immediately
		}

		return fate{outcome: returned, err: err}
	}
}

// store stores a message that is stopped or parked.
func (r *Router) store(ctx context.Context, d *delivery, f fate) error {
	if f.outcome == stopped {
		return r.failed.Stop(ctx, d.failed(f))
	}

	return r.failed.Park(ctx, d.failed(f), f.wait, f.awaits...)
}

// report counts a fate, and logs it unless the message was applied.
func (r *Router) report(d *delivery, f fate, took time.Duration) {
	log := func(level slog.Level, text string, attrs ...slog.Attr) {
		attrs = slices.Concat([]slog.Attr{slog.String("consumer", d.route.Consumer), slog.String("message_id", d.msg.UUID)}, attrs, event.TraceAttrs(d.meta.Trace))
		r.logger.LogAttrs(context.Background(), level, text, append(attrs, slog.String("error", d.loggable(f)))...)
	}

	switch {
	case f.outcome == returned && !isReturn(f.err):
		log(slog.LevelError, "message returned to the broker")
	case f.outcome == stopped:
		reason := string(reasonOf(f.err))

		r.metrics.stopped.WithLabelValues(d.route.Topic, reason).Inc()
		log(slog.LevelWarn, "message stopped", slog.String("reason", reason))
	case f.outcome == parked && isPending(f.err):
		log(slog.LevelInfo, "message is waiting for an outcome", slog.Duration("wait", f.wait.Round(time.Millisecond)))
	case f.outcome == parked && len(f.awaits) > 0 && d.entry != nil: // already logged
	case f.outcome == parked && len(f.awaits) > 0:
		log(slog.LevelInfo, "message parked: it arrived before a message that it depends on")
	case f.outcome == parked && !isReturn(f.err):
		log(slog.LevelWarn, "message parked", slog.Int("attempts", f.attempts), slog.Duration("wait", f.wait.Round(time.Millisecond)))
	}

	reason, text := d.failure(f.err)
	d.span.End(string(f.outcome), reason, text)

	if f.err != nil && !isReturn(f.err) {
		r.metrics.failures.WithLabelValues(d.route.Consumer, string(reasonOf(f.err))).Inc()
	}

	r.metrics.messages.WithLabelValues(d.route.Consumer, d.route.Topic, string(f.outcome)).Inc()
	r.metrics.handle.WithLabelValues(d.route.Consumer).Observe(took.Seconds())
}

// receive returns the handler for messages on the routes' topic.
func (r *Router) receive(routes []*Route) message.NoPublishHandlerFunc {
	return func(msg *message.Message) error { return r.settle(routes, msg) }
}

// settle delivers a message to the consumers of its topic and answers it.
func (r *Router) settle(routes []*Route, msg *message.Message) error {
	session := msg.Context()

	defer line.Of(session).Answered()

	if !r.gate.enter() {
		// Stopping: keep the message until the subscription closes, so that the
		// broker does not redeliver it in a loop.
		<-session.Done()
		msg.Nack()

		return ErrStopping
	}
	defer r.gate.leave()
	defer msg.Nack() // no effect on a message that was acknowledged

	crashpoint.At(crashpoint.Received)

	// Processing a message may outlast its subscription. Router.working and
	// Config.HandlerTimeout bound it instead.
	msg.SetContext(context.WithoutCancel(session))

	err := r.deliverAll(session, routes, msg, join(session, routes))

	// Watermill answers after this function returns, but the message is in flight
	// until it is answered.
	if err == nil {
		crashpoint.At(crashpoint.Acking)
		msg.Ack()
		crashpoint.At(crashpoint.Acked)
	}

	return err
}

// join puts the message of ctx at the end of its line at each consumer. The
// subscriber may then deliver the next one. It returns nil if the message is in no line, or
// if a consumer takes messages with the same key one at a time.
func join(ctx context.Context, routes []*Route) []*place {
	l := line.Of(ctx)
	if l == nil || slices.ContainsFunc(routes, func(route *Route) bool { return route.lines == nil }) {
		return nil
	}

	places := make([]*place, len(routes))
	for i, route := range routes {
		places[i] = route.lines.join(l)
	}

	l.Join()

	return places
}

// deliverAll delivers a message to all consumers of its topic concurrently. If any
// consumer could not settle it, deliverAll returns an error, which returns the message
// to the broker. The inbox makes the redelivery harmless for the others.
func (r *Router) deliverAll(session context.Context, routes []*Route, msg *message.Message, places []*place) error {
	fates := make([]fate, len(routes))
	deliver := func(i int, msg *message.Message, shared bool) {
		var p *place

		if places != nil {
			p = places[i]
			defer func() { routes[i].lines.leave(p, fates[i].outcome == returned || fates[i].outcome == "") }()
		}

		d := r.newDelivery(session, routes[i], msg, nil, shared)
		d.place = p

		fates[i] = r.deliver(d)
	}

	var group sync.WaitGroup

	for i := range routes {
		if len(routes) == 1 {
			deliver(i, msg, false)

			break
		}

		own := msg.Copy()
		own.SetContext(msg.Context())
		group.Go(func() { deliver(i, own, true) })
	}

	group.Wait()

	for _, f := range fates {
		if f.outcome == returned {
			return f.err
		}
	}

	return nil
}

func reasonOf(err error) event.Reason {
	var (
		rejection *event.RejectError
		panicked  *panicError
		recovered middleware.RecoveredPanicError
		early     *event.EarlyError
	)

	switch {
	case errors.As(err, &rejection):
		return rejection.Reason
	case errors.As(err, &panicked), errors.As(err, &recovered):
		return event.ReasonPanicked
	case isPending(err):
		return event.ReasonPending
	case errors.As(err, &early):
		return event.ReasonEarly
	default:
		return event.ReasonFailed
	}
}

// messageID returns the ID set by the broker's marshaler, which is always a UUID.
func messageID(msg *message.Message) uuid.UUID {
	id, err := uuid.Parse(msg.UUID)
	if err != nil {
		return event.ForeignID("watermill", msg.UUID)
	}

	return id
}

// panicError is a recovered handler panic.
type panicError struct {
	Value any
	Stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("handler panicked: %v\n%s", e.Value, e.Stack) }

// protect turns a panic in fn into an error. Batches run in their own goroutines,
// which Watermill's Recoverer does not cover.
func protect[T any](fn func() (T, error)) (result T, err error) {
	defer func() {
		if value := recover(); value != nil {
			err = &panicError{Value: value, Stack: debug.Stack()}
		}
	}()

	return fn()
}
