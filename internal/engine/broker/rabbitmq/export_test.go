package rabbitmq

import (
	"context"
	"time"
)

// RenewAfter sets how long subscriptions get nothing until they are renewed.
func (d *Driver) RenewAfter(interval time.Duration) { d.renewAfter = interval }

// Subscription identifies the subscription to a topic that RabbitMQ has accepted, maybe
// behind another replica's. It is nil if there is none.
func (d *Driver) Subscription(topic string) any {
	d.sharing.mu.Lock()
	defer d.sharing.mu.Unlock()

	for s := range d.sharing.sessions {
		if s.topic == topic {
			return s
		}
	}

	return nil
}

// Share does what a ping does periodically.
func (d *Driver) Share(ctx context.Context) error {
	l, err := d.consumers.open(ctx)
	if err == nil {
		d.share(l)
	}

	return err
}
