package broker

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/millracehq/millrace/internal/engine/broker/driver"
	"github.com/millracehq/millrace/internal/engine/scrub"
)

// Backlog is what a broker holds for a topic that this service consumes.
type Backlog = driver.Backlog

// State is the state of a connection to a broker.
type State struct {
	Broker string `json:"broker"`
	// Since is when the broker was last known to answer, or when the service began
	// to connect. Nil while the broker answers.
	Since *time.Time `json:"since,omitempty"`
	// Established is false until the first connection.
	Established bool `json:"established"`
	// Blocked is true while the broker answers but accepts no messages.
	Blocked bool `json:"blocked,omitempty"`
	// Why is the last error.
	Why string `json:"why,omitempty"`
	// Remedy is what to do about an account that the broker rejects.
	Remedy string `json:"remedy,omitempty"`
}

// Up reports whether the broker answers.
func (s State) Up() bool { return s.Established && s.Since == nil }

// health tracks the state of a connection.
type health struct {
	mu    sync.Mutex
	state State
	// asking is true while a Ping runs.
	asking bool
}

// began records that the service has begun to connect.
func (h *health) began() {
	h.mu.Lock()
	defer h.mu.Unlock()

	now := time.Now().UTC()
	h.state.Since = &now
}

// heard records the broker's answer.
func (h *health) heard(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()

	if err == nil {
		h.state = State{Established: true}

		return
	}

	if blocked := errors.Is(err, driver.ErrBlocked); h.state.Since == nil || blocked != h.state.Blocked {
		h.state.Blocked = blocked
		now := time.Now().UTC()
		h.state.Since = &now
	}

	h.state.Why, h.state.Remedy = scrub.Text(err.Error()), ""

	if refused, ok := errors.AsType[*driver.RefusedError](err); ok {
		h.state.Remedy = refused.Remedy
	}
}

// State returns the last known state of the connection.
func (c *Conn) State() State {
	c.health.mu.Lock()
	defer c.health.mu.Unlock()

	state := c.health.state
	state.Broker = c.kind

	return state
}

// Down returns why messages cannot pass through the broker, or "".
func (c *Conn) Down() string {
	switch state := c.State(); {
	case state.Up():
		return ""
	case state.Blocked:
		return c.kind + " is not accepting messages"
	}

	return c.kind + " is not responding"
}

var errSilent = errors.New("the broker is not responding")

// Check pings a connected broker and records the result. It returns when ctx ends even if
// the client library does not.
func (c *Conn) Check(ctx context.Context) {
	c.health.mu.Lock()
	established, asking := c.health.state.Established, c.health.asking
	c.health.asking = asking || established
	c.health.mu.Unlock()

	switch {
	case !established: // Connect records the state
		return
	case asking: // the last call is still waiting
		c.health.heard(errSilent)

		return
	}

	answer := make(chan error, 1)

	go func() {
		answer <- c.Ping(ctx)

		c.health.mu.Lock()
		c.health.asking = false
		c.health.mu.Unlock()
	}()

	select {
	case err := <-answer:
		c.health.heard(err)
	case <-ctx.Done():
		c.health.heard(errSilent)
	}
}

// Refusal returns why the broker refuses the subscription to a topic, or nil.
func (c *Conn) Refusal(topic string) *driver.Refusal {
	for _, refusal := range c.Refusals() {
		if refusal.Topic == topic {
			return &refusal
		}
	}

	return nil
}
