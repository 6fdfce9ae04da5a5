package operate

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/scrub"
)

// ConsumerState says whether messages for a consumer are applied.
type ConsumerState string

// States of a consumer in a process.
const (
	Running       ConsumerState = "running"        // messages are applied as they arrive
	Paused        ConsumerState = "paused"         // by an operator
	Waiting       ConsumerState = "waiting"        // for a dependency
	Connecting    ConsumerState = "connecting"     // the broker has not been reached yet
	Disconnected  ConsumerState = "disconnected"   // the broker no longer responds
	NotSubscribed ConsumerState = "not subscribed" // the broker responds, but has no subscription
	Stopped       ConsumerState = "stopped"        // the process does not consume or is stopping
	Unknown       ConsumerState = "unknown"        // no service responds
)

// Consumer is the state of a consumer.
type Consumer struct {
	Consumer string        `json:"consumer"`
	Topic    string        `json:"topic"`
	Broker   string        `json:"broker"`
	State    ConsumerState `json:"state" enum:"running,paused,waiting,connecting,disconnected,not subscribed,stopped,unknown"`
	// Since is when the state began, if that is known, and Why the reason.
	Since *time.Time `json:"since,omitempty"`
	Why   string     `json:"why,omitempty"`
	// Remedy is what to do about a subscription that the broker refuses.
	Remedy string `json:"remedy,omitempty"`
	// Needs names the dependencies that the consumer is waiting for.
	Needs []string `json:"needs,omitempty"`
	// Pause is set while an operator has paused the consumer, in any state.
	Pause *consumer.Pause `json:"pause,omitempty"`
}

// consumers returns the states of the consumers in this process, omitting who paused them
// and why: /statusz shows them to everybody. Postgres has the complete pauses.
func (o *Operator) consumers() []Consumer {
	routes := o.Router.States()
	list := make([]Consumer, len(routes))

	for i, r := range routes {
		c := Consumer{Consumer: r.Consumer, Topic: r.Topic, Broker: o.Brokers.Of(r.Topic).Kind(), State: Running}
		if r.Pause != nil {
			pause := r.Pause.Anonymous()
			c.Pause = &pause
		}

		o.explain(&c, r)
		list[i] = c
	}

	return list
}

// explain sets the state of a consumer from the first reason why its messages are not
// applied.
func (o *Operator) explain(c *Consumer, r consumer.State) {
	conn := o.Brokers.Of(r.Topic).State()
	lost, refused := o.monitor.unsubscribed(r.Topic), o.Brokers.Of(r.Topic).Refusal(r.Topic)
	set := func(state ConsumerState, since *time.Time, why string) { c.State, c.Since, c.Why = state, since, why }

	switch {
	case r.Phase == consumer.NotRunning:
		set(Stopped, nil, "")
	case r.Phase == consumer.Draining:
		set(Stopped, &r.Since, "the service is stopping")
	case r.Phase == consumer.Connecting:
		set(Connecting, &r.Since, conn.Why)
	case !conn.Up() && !conn.Blocked: // a blocked broker delivers
		set(Disconnected, conn.Since, conn.Why)
	case refused != nil:
		set(NotSubscribed, &refused.Since, scrub.Text(refused.Err.Error()))
		c.Remedy = refused.Remedy()
	case lost != nil:
		set(NotSubscribed, lost, "the broker has no subscription for the topic")
	case r.Pause != nil:
		set(Paused, &r.Pause.At, "")
	case len(r.Waits) > 0:
		set(Waiting, r.Waits[0].Since, r.Waits[0].Why)
	}

	for _, dependency := range r.Waits {
		c.Needs = append(c.Needs, dependency.Name)
	}
}

// Consumers returns the consumers of this process with the pauses stored in Postgres,
// which the process picks up within a second.
func (o *Operator) Consumers(ctx context.Context) ([]Consumer, error) {
	pauses, err := consumer.Pauses(ctx, o.Pool)
	if err != nil {
		return nil, err
	}

	return pausedBy(o.consumers(), pauses), nil
}

// ConsumersAt returns the consumers of the service whose probes are at addr. If the
// service does not respond, their states are unknown, except for the pauses stored in
// Postgres.
func (o *Operator) ConsumersAt(ctx context.Context, addr string) ([]Consumer, error) {
	var process Process

	list := o.unknown()
	if err := askState(ctx, addr, &process); err == nil {
		list = process.Consumers
	}

	pauses, err := consumer.Pauses(ctx, o.Pool)
	if err != nil {
		return nil, err
	}

	return pausedBy(list, pauses), nil
}

// unknown returns the consumers of a service that does not respond.
func (o *Operator) unknown() []Consumer {
	list := o.consumers()
	for i := range list {
		list[i].State = Unknown
	}

	return list
}

// pausedBy replaces the pauses in list.
func pausedBy(list []Consumer, pauses []consumer.Pause) []Consumer {
	for i := range list {
		c := &list[i]
		c.Pause = nil

		for _, p := range pauses {
			if p.Consumer == c.Consumer {
				c.Pause = &p
			}
		}

		switch {
		case c.Pause != nil && (c.State == Running || c.State == Paused):
			c.State, c.Since, c.Why = Paused, &c.Pause.At, c.Pause.Why
		case c.Pause == nil && c.State == Paused:
			c.State, c.Since, c.Why = Running, nil, ""
		}
	}

	return list
}

// ConsumerNames returns the names of the consumers.
func (o *Operator) ConsumerNames() []string {
	return postgres.Column(o.Router.Routes(), func(r *consumer.Route) string { return r.Consumer })
}

// Topics returns the topics that the service consumes or publishes.
func (o *Operator) Topics() []string { return slices.Concat(o.Router.Topics()) }

// KnownTopic returns an Unknown error unless the service consumes or publishes the
// topic.
func (o *Operator) KnownTopic(topic string) error {
	if known := o.Topics(); !slices.Contains(known, topic) {
		return event.UnknownName("topic", topic, known)
	}

	return nil
}

// Describe formats the state of a consumer on one line.
func (c Consumer) Describe(stamp func(time.Time) string) string {
	var text string

	switch c.State { //nolint:exhaustive // the others are handled below
	case Paused:
		return paused(*c.Pause, stamp)
	case Waiting:
		text = "waiting for " + strings.Join(c.Needs, " and ")
	case Connecting:
		text = "connecting to " + c.Broker
	case Disconnected:
		text = "disconnected from " + c.Broker
	case NotSubscribed:
		text = "not subscribed at " + c.Broker
	default:
		text = string(c.State)
	}

	if c.Since != nil {
		text += " since " + stamp(*c.Since)
	}

	if c.Why != "" {
		text += ": " + c.Why
	}

	if c.Pause != nil {
		text += "; " + paused(*c.Pause, stamp)
	}

	return text
}

// paused formats what p says about who paused a consumer, since when, until when and why.
func paused(p consumer.Pause, stamp func(time.Time) string) string {
	text := "paused"
	if p.Who != "" {
		text += " by " + p.Who
	}

	text += " since " + stamp(p.At)
	if p.Until != nil {
		text += " until " + stamp(*p.Until)
	}

	if p.Why != "" {
		text += ": " + p.Why
	}

	return text
}
