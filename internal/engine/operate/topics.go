package operate

import (
	"slices"

	"github.com/millracehq/millrace/internal/engine/event"
)

// topics returns the topics that are consumed or published here.
func (o *Operator) topics() []string {
	consumed, publishedOnly := o.Router.Topics()

	return slices.Concat(consumed, publishedOnly)
}

// consumers returns the names of the consumers.
func (o *Operator) consumers() (names []string) {
	for _, route := range o.Router.Routes() {
		names = append(names, route.Consumer)
	}

	return names
}

// KnownTopic returns an Unknown error unless the topic is consumed or published
// here.
func (o *Operator) KnownTopic(topic string) error {
	if known := o.topics(); !slices.Contains(known, topic) {
		return event.UnknownName("topic", topic, known)
	}

	return nil
}
