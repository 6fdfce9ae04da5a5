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

// unconsumedTTL is how long, in milliseconds, a queue keeps the messages on a topic
// that is not consumed here: 7 days.
const unconsumedTTL = int64(7 * 24 * time.Hour / time.Millisecond)

// topology creates the exchange and the queues if they are missing, and uses those that
// exist, however they were declared.
type topology struct {
	cfg    Config
	logger *slog.Logger

	// exchange is held while we look for the exchange and create it.
	exchange sync.Mutex

	mu     sync.Mutex
	topics []driver.Topic
	// compared holds the objects that have been compared with what we would declare, and
	// whether they are the same. differences lists what differs.
	compared    map[string]bool
	differences []string
}

// dropped is the queue for messages that RabbitMQ itself removes from one of our queues
// because an operator has set a limit.
func (t *topology) dropped() string { return t.cfg.Exchange + ".dropped" }

// use sets the topics whose queues are bound when the exchange is created.
func (t *topology) use(topics []driver.Topic) {
	t.mu.Lock()
	defer t.mu.Unlock()

	t.topics = topics
}

func (t *topology) list() []driver.Topic {
	t.mu.Lock()
	defer t.mu.Unlock()

	return t.topics
}

// topic returns a topic by name.
func (t *topology) topic(name string) driver.Topic {
	topics := t.list()
	if i := slices.IndexFunc(topics, func(topic driver.Topic) bool { return topic.Name == name }); i >= 0 {
		return topics[i]
	}

	return driver.Topic{Name: name}
}

// ensureExchange makes sure that the exchange, which a topic needs, exists. Bindings are
// lost with their exchange, so if ensureExchange creates the exchange, it binds all
// queues to it.
func (t *topology) ensureExchange(l *live, topic string) error {
	t.exchange.Lock()
	defer t.exchange.Unlock()

	created, err := t.ensure(l, topic, object{
		kind: "exchange", name: t.cfg.Exchange,
		look: func(ch *amqp091.Channel) error {
			return ch.ExchangeDeclarePassive(t.cfg.Exchange, amqp091.ExchangeDirect, true, false, false, false, nil)
		},
		declare: func(ch *amqp091.Channel) error {
			return ch.ExchangeDeclare(t.cfg.Exchange, amqp091.ExchangeDirect, true, false, false, false, nil)
		},
	})
	if err != nil || !created {
		return err
	}

	if err := t.ensureDropped(l); err != nil && !refused(err) {
		return err
	}

	for _, topic := range t.list() {
		// A missing queue is bound when it is created.
		if err := t.bind(l, topic.Name); err != nil && !refused(err) {
			return err
		}
	}

	return nil
}

// ensureTopic makes sure that a topic's queue exists and is bound to the exchange. Even
// if the exchange cannot be created, consumers get what is in the queue or is sent to it
// directly.
func (t *topology) ensureTopic(l *live, topic driver.Topic) error {
	noExchange := t.ensureExchange(l, topic.Name)
	if noExchange != nil && !refused(noExchange) {
		return noExchange
	}

	_, err := t.ensure(l, topic.Name, queue(topic.Name, t.arguments(l, topic)))
	if err != nil || noExchange != nil {
		return err
	}

	return t.bind(l, topic.Name)
}

// ensureDropped makes sure that there is a queue for what RabbitMQ drops. The
// other queues work without it.
func (t *topology) ensureDropped(l *live) error {
	if !t.cfg.Declare {
		return nil
	}

	if _, err := t.ensure(l, t.dropped(), queue(t.dropped(), amqp091.Table{"x-queue-type": "quorum"})); err != nil {
		return err
	}

	return t.bind(l, t.dropped())
}

// arguments returns the arguments for creating a topic's queue.
func (t *topology) arguments(l *live, topic driver.Topic) amqp091.Table {
	args := amqp091.Table{"x-queue-type": "quorum"} // other types are not replicated

	if !topic.Consumed {
		args["x-message-ttl"] = unconsumedTTL

		return args
	}

	args["x-dead-letter-exchange"], args["x-dead-letter-routing-key"] = t.cfg.Exchange, t.dropped()
	args["x-single-active-consumer"] = true // several would give up the order of a key

	if l.unlimitedNeedsArgument() {
		args["x-delivery-limit"] = int64(-1)
	}

	return args
}

// unlimitedNeedsArgument reports whether a quorum queue must be declared without a
// limit. Otherwise the broker drops a message that has come back 20 times. A message
// comes back when a process ends with the message in hand.
func (l *live) unlimitedNeedsArgument() bool {
	version, _ := l.Properties["version"].(string)
	major, _, _ := strings.Cut(version, ".")
	n, err := strconv.Atoi(major)

	return err == nil && n >= 4
}

// bind routes the messages on a topic from the exchange to its queue. An account that
// may not bind uses the existing bindings; Publish fails if there are none.
func (t *topology) bind(l *live, topic string) error {
	if !t.cfg.Declare {
		return nil
	}

	err := onChannel(l, func(ch *amqp091.Channel) error { return ch.QueueBind(topic, topic, t.cfg.Exchange, false, nil) })
	if !answered(err, amqp091.AccessRefused) {
		// The queue or the exchange may just have been deleted.
		return sorted(err, topic, fmt.Sprintf("bind queue %s to exchange %s", topic, t.cfg.Exchange))
	}

	if t.first("binding of " + topic) {
		t.logger.Warn("cannot bind the queue to the exchange; using the existing bindings",
			slog.String("queue", topic), slog.String("exchange", t.cfg.Exchange), slog.Any("error", err))
	}

	return nil
}

// queueKind is the kind of a queue.
const queueKind = "queue"

// object is an exchange or a queue.
type object struct {
	kind, name    string
	look, declare func(*amqp091.Channel) error
}

func queue(name string, args amqp091.Table) object {
	return object{
		kind: queueKind, name: name,
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

// ensure looks for an object that a topic needs, and creates it if it is missing.
func (t *topology) ensure(l *live, topic string, o object) (created bool, err error) {
	err = onChannel(l, o.look)

	switch {
	case err == nil:
		t.compare(l, o)

		return false, nil
	case !answered(err, amqp091.NotFound):
		return false, unusable(topic, o, err)
	case !t.cfg.Declare:
		return false, t.missing(topic, o, err)
	}

	t.forget(o.kind + o.name)

	err = onChannel(l, o.declare)

	switch {
	case err == nil:
		t.same(o.kind + o.name) // nothing to compare: we declared it
		t.logger.Info("created a missing exchange or queue", slog.String(o.kind, o.name))

		return true, nil
	case answered(err, amqp091.AccessRefused):
		return false, t.missing(topic, o, err)
	case answered(err, amqp091.PreconditionFailed): // another process got there first
		return false, nil
	}

	return false, unusable(topic, o, err)
}

// compare records once how an object differs from what we would declare. Only the broker
// knows, and it tells only accounts that may declare.
func (t *topology) compare(l *live, o object) {
	if !t.cfg.Declare || !t.first(o.kind+o.name) {
		return
	}

	err := onChannel(l, o.declare)

	switch {
	case err == nil:
		t.same(o.kind + o.name)

		return
	case !answered(err, amqp091.PreconditionFailed):
		t.forget(o.kind + o.name)

		return
	}

	if strings.Contains(err.Error(), "'alternate-exchange'") {
		t.logger.Warn("the exchange has an alternate exchange: messages that reach no queue are routed there and count as published",
			slog.Any("error", err), slog.String("remedy", "delete exchange "+o.name+" while the service runs: "+
				"the service recreates it and binds its own queues; rebind any others"))

		return
	}

	t.mu.Lock()
	defer t.mu.Unlock()

	difference, _ := errors.AsType[*amqp091.Error](err)
	t.differences = append(t.differences, strings.TrimPrefix(difference.Reason, "PRECONDITION_FAILED - "))
}

// report logs the differences on one line.
func (t *topology) report() {
	t.mu.Lock()
	defer t.mu.Unlock()

	if len(t.differences) == 0 {
		return
	}

	slices.Sort(t.differences)
	t.logger.Warn("using exchanges and queues that differ from what Millrace would declare; to have one redeclared, delete it while it is empty",
		slog.Any("differences", t.differences))

	t.differences = nil
}

// first reports whether this is the first call with this name.
func (t *topology) first(name string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()

	_, compared := t.compared[name]
	if !compared {
		t.compared[name] = false
	}

	return !compared
}

// same records that an object is as we would declare it.
func (t *topology) same(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()

	t.compared[name] = true
}

// forget has an object compared again, because it may no longer be the same.
func (t *topology) forget(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()

	delete(t.compared, name)
}

// declared reports whether a topic's queue is known to be as we would declare it.
func (t *topology) declared(topic string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()

	return t.compared[queueKind+topic]
}

// missing returns a topic's error for an object that does not exist and was not created.
func (t *topology) missing(topic string, o object, err error) error {
	remedy := fmt.Sprintf("create %s %s, or grant the account permission to configure and read it", o.kind, o.name)
	if !t.cfg.Declare {
		remedy = fmt.Sprintf("create %s %s, or set broker.rabbitmq.declare to true", o.kind, o.name)
	}

	return &driver.RefusedError{
		Scope: driver.OneTopic, Topic: topic, Remedy: remedy, Err: fmt.Errorf("%s %s does not exist and was not created: %w", o.kind, o.name, err),
	}
}

// unusable returns a topic's error for an object that exists but cannot be used, or
// that cannot be created.
func unusable(topic string, o object, err error) error {
	return sorted(fmt.Errorf("declaring %s %s: %w", o.kind, o.name, err), topic,
		fmt.Sprintf("correct %s %s at the broker, or the account's permissions", o.kind, o.name))
}

// refused reports whether err is an answer from the broker rather than a lost connection.
func refused(err error) bool {
	_, is := errors.AsType[*driver.RefusedError](err)

	return is
}

// sorted returns err as a driver.RefusedError if it is an answer from the broker that
// concerns a topic and will not change on its own.
func sorted(err error, topic, remedy string) error {
	if !answered(err, amqp091.AccessRefused, amqp091.NotFound, amqp091.ResourceLocked, amqp091.PreconditionFailed) {
		return err
	}

	return &driver.RefusedError{Scope: driver.OneTopic, Topic: topic, Remedy: remedy, Err: err}
}

// inspect returns a queue's numbers of messages and consumers.
func inspect(l *live, name string) (found amqp091.Queue, err error) {
	err = onChannel(l, func(ch *amqp091.Channel) error {
		found, err = ch.QueueDeclarePassive(name, true, false, false, false, nil)

		return err
	})

	return found, err
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

// answered reports whether err is an answer from the broker with one of these codes.
func answered(err error, codes ...int) bool {
	answer, ok := errors.AsType[*amqp091.Error](err)

	return ok && answer.Server && slices.Contains(codes, answer.Code)
}
