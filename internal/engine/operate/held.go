package operate

import (
	"context"
	"fmt"
	"time"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/scrub"
)

// Held says why messages that are due are not being tried.
type Held struct {
	Consumer string `json:"consumer"`
	Messages int    `json:"messages"`
	Why      string `json:"why"`
}

func (h Held) String() string {
	return fmt.Sprintf("%s for %s: %s", event.Plural(h.Messages, "waits", "wait"), h.Consumer, h.Why)
}

// Held returns what is holding up messages; messages counts them by consumer. In a process
// that is not the service, Held asks the service at addr.
func (o *Operator) Held(ctx context.Context, addr string, messages map[string]int) ([]Held, error) {
	held := []Held{}
	if len(messages) == 0 {
		return held, nil
	}

	read := o.Consumers
	if o.StartedAt.IsZero() {
		read = func(ctx context.Context) ([]Consumer, error) { return o.ConsumersAt(ctx, addr) }
	}

	consumers, err := read(ctx)

	for _, c := range consumers {
		n := messages[c.Consumer]
		if why := c.holds(addr); n > 0 && why != "" {
			held = append(held, Held{Consumer: c.Consumer, Messages: n, Why: why})
		}
	}

	return held, err
}

// HeldAfter is Held for use after a completed action: instead of failing, it returns why
// the answer is unknown.
func (o *Operator) HeldAfter(ctx context.Context, addr string, messages map[string]int) (held []Held, unknown string) {
	held, err := o.Held(ctx, addr, messages)
	if err != nil {
		unknown = scrub.Text(err.Error())
	}

	return held, unknown
}

// holds returns why a consumer retries no messages and what to do about it, or "".
// Retries need no broker, so the broker's state does not matter.
func (c Consumer) holds(addr string) string {
	stamp := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }

	switch {
	case c.Pause != nil:
		pause := *c.Pause
		pause.Why = "" // free text, which viewers must not see

		return fmt.Sprintf("it is %s; resume it first: millrace consumers resume %s", paused(pause, stamp), c.Consumer)
	case c.State == Waiting:
		return fmt.Sprintf("it is %s; it will try them once the dependency is available", c.Describe(stamp))
	case c.State == Unknown:
		return fmt.Sprintf("no service is responding at health.addr %s; they will be tried once a service is running", addr)
	default:
		return ""
	}
}
