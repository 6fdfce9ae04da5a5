package broker

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millracehq/millrace/internal/engine/broker/driver"
)

// names maps topics to their names on a broker, where the two differ.
type names map[string]string

// of returns the name of a topic on the broker.
func (n names) of(topic string) string { return cmp.Or(n[topic], topic) }

// topic returns the topic with the given name on the broker.
func (n names) topic(name string) string {
	for topic, other := range n {
		if other == name {
			return topic
		}
	}

	return name
}

// CheckNames returns an error if two topics have the same name on their broker. Pass it
// all of the service's topics.
func (s *Set) CheckNames(topics []string) error {
	taken := map[[2]string]string{} // topics by broker and name

	for _, topic := range topics {
		conn := s.Of(topic)
		name := conn.names.of(topic)

		at := [2]string{conn.kind, name}
		if other, is := taken[at]; is {
			return fmt.Errorf("topics %s and %s are both named %s on %s, expected different names", other, topic, name, conn.kind)
		}

		taken[at] = topic
	}

	return nil
}

// named wraps a driver for callers that use this service's topic names. It is the only
// place that knows both names: the driver below it, with its log, errors and remedies,
// uses the broker's names.
type named struct {
	driver.Driver
	driver.Tailer

	names names
}

// Connect implements driver.Driver.
func (n named) Connect(ctx context.Context, topics []driver.Topic) error {
	topics = slices.Clone(topics)
	for i := range topics {
		topics[i].Name = n.names.of(topics[i].Name)
	}

	return n.Driver.Connect(ctx, topics)
}

// Publisher implements driver.Driver.
func (n named) Publisher() message.Publisher {
	return namedPublisher{Publisher: n.Driver.Publisher(), names: n.names}
}

// Subscriber implements driver.Driver.
func (n named) Subscriber(topic string, key func(payload []byte) string) (message.Subscriber, error) {
	return n.Driver.Subscriber(n.names.of(topic), key)
}

// Refusals implements driver.Driver.
func (n named) Refusals() []driver.Refusal {
	list := n.Driver.Refusals()
	for i := range list {
		list[i].Topic = n.names.topic(list[i].Topic)
	}

	return list
}

// Backlogs implements driver.Driver.
func (n named) Backlogs(ctx context.Context, topics []string) ([]driver.Backlog, error) {
	topics = slices.Clone(topics)
	for i := range topics {
		topics[i] = n.names.of(topics[i])
	}

	list, err := n.Driver.Backlogs(ctx, topics)
	for i := range list {
		list[i].Topic = n.names.topic(list[i].Topic)
	}

	return list, err
}

// Tail implements driver.Tailer.
func (n named) Tail(ctx context.Context, topic string, fn func(*message.Message) error) error {
	return n.Tailer.Tail(ctx, n.names.of(topic), fn)
}

type namedPublisher struct {
	message.Publisher

	names names
}

// Publish implements message.Publisher.
func (p namedPublisher) Publish(topic string, messages ...*message.Message) error {
	return p.Publisher.Publish(p.names.of(topic), messages...)
}
