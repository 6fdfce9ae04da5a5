package driver

import (
	"context"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millracehq/millrace/internal/engine/event"
)

// Subscription is the part that all subscribers share: they deliver until their context
// ends or they are closed, whatever happens to the broker.
type Subscription struct {
	closing context.Context //nolint:containedctx // it is a lifetime, not a request
	stop    context.CancelFunc
	running sync.WaitGroup
}

// NewSubscription returns a Subscription that is not closed.
func NewSubscription() *Subscription {
	s := &Subscription{}
	s.closing, s.stop = context.WithCancel(context.Background())

	return s
}

// Run calls deliver on its own goroutine, and closes the returned channel when deliver
// returns. The context of deliver ends with ctx or with the Subscription.
func (s *Subscription) Run(ctx context.Context, deliver func(ctx context.Context, out chan<- *message.Message)) <-chan *message.Message {
	ctx, cancel := context.WithCancel(ctx)
	context.AfterFunc(s.closing, cancel)

	out := make(chan *message.Message)

	s.running.Go(func() {
		defer close(out)
		defer cancel()

		deliver(ctx, out)
	})

	return out
}

// Close implements message.Subscriber. It waits until deliver has returned.
func (s *Subscription) Close() error {
	s.stop()
	s.running.Wait()

	return nil
}

// KeyOf returns the key that orders a message: the key from its broker or, if the
// producer set none, the key in its payload.
func KeyOf(msg *message.Message, ofPayload func(payload []byte) string) string {
	if key := msg.Metadata[event.HeaderKey]; key != "" {
		return key
	}

	return ofPayload(msg.Payload)
}
