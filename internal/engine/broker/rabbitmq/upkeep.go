package rabbitmq

import (
	"sync"
	"time"

	"github.com/millracehq/millrace/internal/engine/backoff"
	"github.com/millracehq/millrace/internal/engine/broker/driver"
)

// lookEvery is the time between checks of the topology.
const lookEvery = 10 * time.Second

// upkeep checks the topology periodically. A message whose queue is missing usually
// comes back, and then its topic is restored. The message does not come back if the
// exchange has an alternate exchange, or if another queue is bound with the same
// routing key.
type upkeep struct {
	reminder backoff.Reminder

	mu      sync.Mutex
	next    time.Time
	looking bool
}

// look restores what is missing, unless it has just done so. It does not wait.
func (d *Driver) look(l *live) {
	u := &d.upkeep

	u.mu.Lock()
	defer u.mu.Unlock()

	if u.looking || time.Now().Before(u.next) {
		return
	}

	u.looking = true

	go func() {
		switch err := d.repair(l); {
		case err == nil:
			u.reminder.Reset()
		case !l.IsClosed() && u.reminder.Due(err):
			d.logger.Warn("part of the topology is missing", because(err)...)
		}

		d.share(l)

		u.mu.Lock()
		defer u.mu.Unlock()

		u.looking, u.next = false, time.Now().Add(lookEvery)
	}()
}

// repair restores the exchange, the queues that we only publish to, and all bindings.
// Each subscription restores its own queue. It returns the first error to report.
func (d *Driver) repair(l *live) error {
	if err := d.topology.ensureExchange(l, ""); err != nil {
		return err
	}

	if err := d.topology.ensureDropped(l); err != nil && !refused(err) { // the others work without it
		return err
	}

	var first error

	for _, topic := range d.topology.list() {
		ensure := d.topology.ensureTopic
		if topic.Consumed {
			ensure = func(l *live, topic driver.Topic) error { return d.topology.bind(l, topic.Name) }
		}

		switch err := ensure(l, topic); {
		case err != nil && !refused(err):
			return err
		case !topic.Consumed && first == nil:
			first = err
		}
	}

	return first
}
