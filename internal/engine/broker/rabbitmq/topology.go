package rabbitmq

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/millracehq/millrace/internal/engine/broker/driver"
)

// unconsumedTTL is how long, in milliseconds, the queue of a topic that is not
// consumed here keeps messages: 7 days.
const unconsumedTTL = int64(7 * 24 * time.Hour / time.Millisecond)

// topology creates what is missing of the exchange and the queues, and uses what
// exists, however it was declared.
type topology struct {
	cfg    Config
	logger *slog.Logger

	mu sync.Mutex
	// compared has the objects that have been compared with what we would declare, and
	// differences what differs.
	compared    map[string]bool
	differences []string
}

// dropped is the queue of the messages that RabbitMQ itself takes out of a queue that
// we have declared, by a limit that an operator has set.
func (t *topology) dropped() string { return t.cfg.Exchange + ".dropped" }

// ensureExchange makes sure that the exchange exists.
func (t *topology) ensureExchange(l *live) error {
	return t.ensure(l, object{
		kind: "exchange", name: t.cfg.Exchange,
		look: func(ch *amqp091.Channel) error {
			return ch.ExchangeDeclarePassive(t.cfg.Exchange, amqp091.ExchangeDirect, true, false, false, false, nil)
		},
		declare: func(ch *amqp091.Channel) error {
			return ch.ExchangeDeclare(t.cfg.Exchange, amqp091.ExchangeDirect, true, false, false, false, nil)
		},
	})
}

// ensureQueue makes sure that the queue of a topic exists, and that the exchange leads
// to it.
func (t *topology) ensureQueue(l *live, topic driver.Topic) error {
	if err := t.ensure(l, queue(topic.Name, t.arguments(l, topic))); err != nil || !t.cfg.Declare {
		return err
	}

	t.bind(l, topic.Name)

	return nil
}

// ensureDropped makes sure that the queue exists that catches what RabbitMQ drops. The
// other queues work without it.
func (t *topology) ensureDropped(l *live) error {
	if !t.cfg.Declare {
		return nil
	}

	if err := t.ensure(l, queue(t.dropped(), amqp091.Table{"x-queue-type": "quorum"})); err != nil {
		return err
	}

	t.bind(l, t.dropped())

	return nil
}

// arguments returns the arguments of the queue of a topic that does not exist yet.
func (t *topology) arguments(l *live, topic driver.Topic) amqp091.Table {
	args := amqp091.Table{"x-queue-type": "quorum"} // others are not replicated

	if !topic.Consumed {
		args["x-message-ttl"] = unconsumedTTL

		return args
	}

	args["x-dead-letter-exchange"], args["x-dead-letter-routing-key"] = t.cfg.Exchange, t.dropped()

	if l.unlimitedNeedsArgument() {
		args["x-delivery-limit"] = int64(-1)
	}

	return args
}

// unlimitedNeedsArgument reports whether the broker drops a message of a quorum queue
// that came back 20 times unless the queue has no limit. A message comes back when a
// process ends while it has the message in hand.
func (l *live) unlimitedNeedsArgument() bool {
	version, _ := l.Properties["version"].(string)
	major, _, _ := strings.Cut(version, ".")
	n, err := strconv.Atoi(major)

	return err == nil && n >= 4
}

// bind leads the messages of a topic from the exchange to its queue. An account that
// may not bind uses the bindings that exist; Publish fails if there are none.
func (t *topology) bind(l *live, topic string) {
	err := onChannel(l, func(ch *amqp091.Channel) error { return ch.QueueBind(topic, topic, t.cfg.Exchange, false, nil) })
	if err != nil && t.first("binding of "+topic) {
		t.logger.Warn("cannot bind the queue to the exchange; using what is bound",
			slog.String("queue", topic), slog.String("exchange", t.cfg.Exchange), slog.Any("error", err))
	}
}

// object is an exchange or a queue.
type object struct {
	kind, name    string
	look, declare func(*amqp091.Channel) error
}

func queue(name string, args amqp091.Table) object {
	return object{
		kind: "queue", name: name,
		look: func(ch *amqp091.Channel) error {
			_, err := ch.QueueDeclarePassive(name, true, false, false, false, nil)

			return err
		},
		declare: func(ch *amqp091.Channel) error {
			_, err := ch.QueueDeclare(name, true, false, false, false, args)

			return err
		},
	}
}

// ensure looks for an object, and creates it if it is missing.
func (t *topology) ensure(l *live, o object) error {
	err := onChannel(l, o.look)

	switch {
	case err == nil:
		t.compare(l, o)

		return nil
	case !answered(err, amqp091.NotFound):
		return t.refused(o, err)
	case !t.cfg.Declare:
		return t.missing(o, err)
	}

	err = onChannel(l, o.declare)

	switch {
	case err == nil:
		t.first(o.kind + o.name) // as we would have it
		t.logger.Info("created what did not exist", slog.String(o.kind, o.name))

		return nil
	case answered(err, amqp091.AccessRefused):
		return t.missing(o, err)
	case answered(err, amqp091.PreconditionFailed): // another process was faster
		return nil
	}

	return t.refused(o, err)
}

// compare notes once how an object differs from what we would declare. Only the broker
// can tell, and only to an account that may declare.
func (t *topology) compare(l *live, o object) {
	if !t.cfg.Declare || !t.first(o.kind+o.name) {
		return
	}

	err := onChannel(l, o.declare)
	if !answered(err, amqp091.PreconditionFailed) {
		return
	}

	t.mu.Lock()
	defer t.mu.Unlock()

	difference, _ := errors.AsType[*amqp091.Error](err)
	t.differences = append(t.differences, strings.TrimPrefix(difference.Reason, "PRECONDITION_FAILED - "))
}

// report logs in one line what differs.
func (t *topology) report() {
	t.mu.Lock()
	defer t.mu.Unlock()

	if len(t.differences) == 0 {
		return
	}

	slices.Sort(t.differences)
	t.logger.Warn("using exchanges and queues that differ from what Millrace would declare; to have one declared anew, delete it while it is empty",
		slog.Any("differences", t.differences))

	t.differences = nil
}

// first reports whether it is called for the first time with this name.
func (t *topology) first(name string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()

	was := t.compared[name]
	t.compared[name] = true

	return !was
}

// missing returns the error for an object that does not exist and is not created.
func (t *topology) missing(o object, err error) error {
	remedy := fmt.Sprintf("create %s %s, or give the account the permissions to configure and read it", o.kind, o.name)
	if !t.cfg.Declare {
		remedy = fmt.Sprintf("create %s %s, or set broker.rabbitmq.declare to true", o.kind, o.name)
	}

	return &driver.RefusedError{
		Scope: driver.OneTopic, Topic: o.name, Remedy: remedy, Err: fmt.Errorf("%s %s does not exist and is not created: %w", o.kind, o.name, err),
	}
}

// refused returns the error for an object that exists and cannot be used, or cannot be
// created.
func (t *topology) refused(o object, err error) error {
	return sorted(fmt.Errorf("declaring %s %s: %w", o.kind, o.name, err), o.name,
		fmt.Sprintf("correct %s %s at the broker, or the permissions of the account", o.kind, o.name))
}

// sorted returns err as a driver.RefusedError if it is an answer of the broker that
// concerns a topic and will not change by itself.
func sorted(err error, topic, remedy string) error {
	if !answered(err, amqp091.AccessRefused, amqp091.NotFound, amqp091.ResourceLocked, amqp091.PreconditionFailed) {
		return err
	}

	return &driver.RefusedError{Scope: driver.OneTopic, Topic: topic, Remedy: remedy, Err: err}
}

// onChannel calls fn with a channel of its own, because an error closes the channel.
func onChannel(l *live, fn func(*amqp091.Channel) error) error {
	channel, err := l.Channel()
	if err != nil {
		return fmt.Errorf("opening channel: %w", err)
	}
	defer closeChannel(channel)

	return fn(channel)
}

// answered reports whether err is one of these answers of the broker to a channel.
func answered(err error, codes ...int) bool {
	answer, ok := errors.AsType[*amqp091.Error](err)

	return ok && answer.Server && slices.Contains(codes, answer.Code)
}
