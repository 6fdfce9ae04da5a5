package rabbitmq

import (
	"context"
	"time"
)

// RenewAfter sets how long subscriptions get nothing until they are renewed.
func (d *Driver) RenewAfter(interval time.Duration) { d.renewAfter = interval }

// Subscriptions returns the number of subscriptions that RabbitMQ has accepted, including
// those that are in line behind another replica's.
func (d *Driver) Subscriptions() int {
	d.sharing.mu.Lock()
	defer d.sharing.mu.Unlock()

	return len(d.sharing.sessions)
}

// Share does what a ping does periodically.
func (d *Driver) Share(ctx context.Context) error {
	l, err := d.consumers.open(ctx)
	if err == nil {
		d.share(l)
	}

	return err
}
