package operate

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/scrub"
)

// Affected returns what it means for the business if the messages on topic are not
// processed, or "".
type Affected func(ctx context.Context, topic string) (string, error)

// Pausing is a request to pause a consumer.
type Pausing struct {
	// For is how long the pause lasts; with 0, until the consumer is resumed.
	For time.Duration
	// DryRun only reports what the pause would affect.
	DryRun bool
}

// Limits of Pausing.For. Replicas look for pauses once a second. A pause of more than a
// year is a mistake: a pause without an end lasts until the consumer is resumed.
const (
	minPause = time.Second
	maxPause = 8760 * time.Hour
)

// PauseOutcome is what a pause did, or would do.
type PauseOutcome struct {
	// Changed is false if the consumer was already paused in this way.
	Changed bool `json:"changed"`
	DryRun  bool `json:"dry_run,omitempty"`
	// Pause is the pause in force, if any.
	Pause *consumer.Pause `json:"pause,omitempty"`
	// Effects lists what waits while the consumer is paused.
	Effects []string `json:"effects"`
	// Unknown says why the pause in force could not be read. The action succeeded.
	Unknown string `json:"unknown,omitempty"`
}

// Pause pauses a consumer on all replicas and reports what that affects.
func (o *Operator) Pause(ctx context.Context, name string, p Pausing, by activity.Actor) (out PauseOutcome, err error) {
	if p.For != 0 && (p.For < minPause || p.For > maxPause) {
		return out, event.Errorf(event.Invalid, "for: is %s, expected %s to %s", p.For, minPause, maxPause)
	}

	if err := o.Router.Known(name); err != nil {
		return out, err
	}

	out.DryRun = p.DryRun

	// Nothing after the action may hide that it succeeded.
	if out.Effects, err = o.effects(ctx, name); err != nil {
		return out, err
	}

	if !p.DryRun {
		if out.Changed, err = o.Router.Pause(ctx, name, p.For, by); err != nil {
			return out, err
		}
	}

	pauses, err := consumer.Pauses(ctx, o.Pool)
	if i := slices.IndexFunc(pauses, func(p consumer.Pause) bool { return p.Consumer == name }); i >= 0 {
		out.Pause = &pauses[i]
	}

	if err != nil {
		out.Unknown = scrub.Text(err.Error())
	}

	return out, nil
}

// effects returns what waits while a consumer is paused.
func (o *Operator) effects(ctx context.Context, name string) ([]string, error) {
	var topic string

	for _, r := range o.Router.Routes() {
		if r.Consumer == name {
			topic = r.Topic
		}
	}

	arriving, err := o.arriving(ctx, name, topic)
	if err != nil {
		return nil, err
	}

	effects := []string{arriving}

	var waiting, keys int64

	err = o.Pool.QueryRow(ctx, `SELECT count(*), count(DISTINCT failed_key) FROM failed_messages WHERE consumer = $1 AND state = 'waiting'`, name).
		Scan(&waiting, &keys)
	if err != nil {
		return nil, fmt.Errorf("counting waiting messages for %s: %w", name, err)
	}

	if waiting > 0 {
		effects = append(effects, fmt.Sprintf("not retried: %s of %s",
			event.Plural(waiting, "waiting message", "waiting messages"), event.Plural(keys, "key", "keys")))
	}

	for _, affected := range o.Affected {
		text, err := affected(ctx, topic)
		if err != nil {
			return nil, err
		}

		if text != "" {
			effects = append(effects, text)
		}
	}

	return effects, nil
}

// arriving returns what becomes of the messages that arrive for a paused consumer.
func (o *Operator) arriving(ctx context.Context, name, topic string) (string, error) {
	var others []string

	for _, r := range o.Router.Routes() {
		if r.Topic == topic && r.Consumer != name {
			others = append(others, r.Consumer)
		}
	}

	if len(others) > 0 {
		return fmt.Sprintf("messages on %s are parked for it, because %s continues; they are applied in order after the pause",
			topic, strings.Join(others, " and ")), nil
	}

	if kind := o.Brokers.Of(topic).Kind(); kind != broker.Embedded {
		return fmt.Sprintf("messages on %s stay in %s", topic, kind), nil
	}

	var pending int64
	if err := o.Pool.QueryRow(ctx, `SELECT count(*) FROM outbox WHERE topic = $1`, topic).Scan(&pending); err != nil {
		return "", fmt.Errorf("counting messages on %s: %w", topic, err)
	}

	return fmt.Sprintf("messages on %s stay in the outbox; %s there now", topic, event.Plural(pending, "is", "are")), nil
}
