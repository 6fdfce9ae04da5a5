package broker

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"

	"github.com/millracehq/millrace/internal/engine/event"
)

// embedded is Watermill's GoChannel between the relay and the consumers. The
// outbox is the queue: a row stays there until its consumer has acknowledged.
//
// GoChannel's own BlockPublishUntilSubscriberAck is not used: Publish would
// hold the topic while it waits, which leaves one message in hand per topic,
// and it would return nil when the subscription ends before the
// acknowledgement. So each message carries a delivery through its context, and
// Publish waits for that.
type embedded struct {
	cfg      EmbeddedConfig
	channel  *gochannel.GoChannel
	consumed map[string]bool
	closing  context.Context //nolint:containedctx // it is a lifetime, not a request
	stop     context.CancelFunc
}

func newEmbedded(cfg EmbeddedConfig, logger *slog.Logger) *embedded {
	closing, stop := context.WithCancel(context.Background())

	return &embedded{
		cfg:     cfg,
		channel: gochannel.NewGoChannel(gochannel.Config{PreserveContext: true}, watermillLogger(logger)),
		closing: closing,
		stop:    stop,
	}
}

func (e *embedded) connect(_ context.Context, topics []Topic) error {
	e.consumed = make(map[string]bool, len(topics))
	for _, topic := range topics {
		e.consumed[topic.Name] = topic.Consumer != ""
	}

	return nil
}

func (e *embedded) lanes() int                           { return e.cfg.Lanes }
func (e *embedded) ping(context.Context) error           { return nil }
func (e *embedded) publisher() message.Publisher         { return embeddedPublisher{e} }
func (e *embedded) subscriber(string) message.Subscriber { return embeddedSubscriber{e} }

func (e *embedded) close() error {
	e.stop()

	return e.channel.Close()
}

// delivery is the fate of a message on its way to its consumer.
type delivery struct {
	done chan error
	// passed is the message as the consumer has it.
	passed atomic.Pointer[message.Message]
}

// atClose returns the fate of a message when the connection is closed: what
// was acknowledged before that counts.
func (d *delivery) atClose() error {
	if msg := d.passed.Load(); msg != nil {
		select {
		case <-msg.Acked():
			return nil
		default:
		}
	}

	return ErrClosed
}

type embeddedKey struct{}

var errNacked = errors.New("the consumer did not acknowledge the message")

type embeddedPublisher struct{ *embedded }

// Publish waits until the consumer has acknowledged. A topic that nobody
// consumes has nobody to wait for: no other process can read it here.
func (p embeddedPublisher) Publish(topic string, messages ...*message.Message) error {
	for _, msg := range messages {
		if !p.consumed[topic] {
			continue
		}

		d := &delivery{done: make(chan error, 1)}

		if msg.Metadata[event.HeaderOrigin] == "" { // else it is known from before
			msg.Metadata[event.HeaderOrigin] = "embedded:" + topic
		}

		msg.SetContext(context.WithValue(p.closing, embeddedKey{}, d))

		if err := p.channel.Publish(topic, msg); err != nil {
			return err
		}

		select {
		case err := <-d.done:
			if err != nil {
				return err
			}
		case <-p.closing.Done():
			if err := d.atClose(); err != nil {
				return err
			}
		}
	}

	return nil
}

// Close leaves the channel open: the driver closes it.
func (embeddedPublisher) Close() error { return nil }

type embeddedSubscriber struct{ *embedded }

// Subscribe passes messages on and reports their fate to Publish.
func (s embeddedSubscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	in, err := s.channel.Subscribe(ctx, topic)
	if err != nil {
		return nil, err
	}

	out := make(chan *message.Message)

	go func() {
		defer close(out)

		for msg := range in {
			s.pass(msg, out)
		}
	}()

	return out, nil
}

func (s embeddedSubscriber) pass(msg *message.Message, out chan<- *message.Message) {
	d, _ := msg.Context().Value(embeddedKey{}).(*delivery)
	d.passed.Store(msg)

	select {
	case out <- msg:
		go s.watch(msg, d)
	case <-s.closing.Done():
	}
}

// watch reports the fate of a message. One that was not acknowledged goes back
// to the relay, which tries again later: GoChannel would at once, for ever.
func (s embeddedSubscriber) watch(msg *message.Message, d *delivery) {
	select {
	case <-msg.Acked():
		d.done <- nil
	case <-msg.Nacked():
		d.done <- errNacked
	case <-s.closing.Done():
	}
}

// Close ends all deliveries: the router closes its subscribers together.
func (s embeddedSubscriber) Close() error {
	s.stop()

	return nil
}
