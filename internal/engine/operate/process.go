package operate

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/millracehq/millrace/internal/engine/breaker"
	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/health"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/scrub"
	"github.com/millracehq/millrace/internal/engine/terminal"
)

// Phases of a service.
const (
	PhaseRunning  = "running"
	PhaseStopping = "stopping"
)

// progress tracks how far a service's startup has got.
type progress struct {
	mu    sync.Mutex
	phase string
	since time.Time
	why   string
	// started is true once the service has been running.
	started bool
}

// Enter records that the service has entered a phase: a startup step, PhaseRunning or
// PhaseStopping.
func (o *Operator) Enter(phase string) {
	o.progress.mu.Lock()
	defer o.progress.mu.Unlock()

	o.progress.phase, o.progress.since, o.progress.why = phase, time.Now().UTC(), ""
	o.progress.started = o.progress.started || phase == PhaseRunning
}

// Started reports whether the service has reached PhaseRunning, so its database is
// prepared. The service may have left that phase since.
func (o *Operator) Started() bool {
	o.progress.mu.Lock()
	defer o.progress.mu.Unlock()

	return o.progress.started
}

// Delayed records why the phase has not ended.
func (o *Operator) Delayed(err error) {
	o.progress.mu.Lock()
	defer o.progress.mu.Unlock()

	o.progress.why = scrub.Text(err.Error())
}

// Process is a running service's view of its own state.
type Process struct {
	StartedAt time.Time `json:"started_at"`
	// Phase is running, stopping or a startup step. It began at PhaseSince.
	Phase      string         `json:"phase"`
	PhaseSince time.Time      `json:"phase_since"`
	Why        string         `json:"why,omitempty"`
	Brokers    string         `json:"brokers"`
	Connected  []broker.State `json:"connections"`
	// Dependencies are the states of the breakers.
	Dependencies []breaker.State `json:"dependencies"`
	Consumers    []Consumer      `json:"consumers"`
	Tasks        []health.State  `json:"tasks"`
	// Stuck lists the topics to which nothing can be published.
	Stuck []outbox.Stuck `json:"stuck_topics"`
	// Troubles lists everything that is wrong, most important first.
	Troubles []health.Trouble `json:"troubles"`
}

// Process returns the state of this process. It asks no other system.
func (o *Operator) Process() Process {
	p := Process{
		StartedAt: o.StartedAt.UTC(), Brokers: o.Brokers.Kinds(), Dependencies: o.Dependencies.States(), Consumers: o.consumers(),
	}

	o.progress.mu.Lock()
	p.Phase, p.PhaseSince, p.Why = o.progress.phase, o.progress.since, o.progress.why
	o.progress.mu.Unlock()

	for _, conn := range o.Brokers.Conns() {
		p.Connected = append(p.Connected, conn.State())
	}

	for _, loop := range append(o.Relay.Loops(), o.Tasks...) {
		p.Tasks = append(p.Tasks, loop.State())
	}

	p.Stuck = o.Relay.Stuck()
	for i := range p.Stuck {
		p.Stuck[i].Broker = o.Brokers.Of(p.Stuck[i].Topic).Kind()
	}

	p.Troubles = p.troubles()

	for _, warning := range o.Warnings {
		key, text, _ := strings.Cut(warning, ": ")
		reason, remedy, _ := strings.Cut(text, "; ")

		p.Troubles = append(p.Troubles, health.Trouble{
			Kind: health.Config, Name: key, Level: health.Note, Reason: reason, Remedy: cmp.Or(remedy, "correct the configuration"),
		})
	}

	return p
}

// Health returns the state of this process and what it last measured, for probes and
// metrics.
func (o *Operator) Health() []health.Trouble {
	facts, backlogs := o.monitor.measured()

	return merge(withFacts(o.Process().Troubles, facts), forgetful(backlogs, o.Retention))
}

// withFacts adds the troubles of the measured facts, if there are any.
func withFacts(troubles []health.Trouble, facts *Facts) []health.Trouble {
	if facts == nil {
		return troubles
	}

	return merge(troubles, facts.Troubles())
}

// merge adds troubles that are not listed yet.
func merge(list, more []health.Trouble) []health.Trouble {
	for _, t := range more {
		if !slices.ContainsFunc(list, func(o health.Trouble) bool { return o.Kind == t.Kind && o.Name == t.Name }) {
			list = append(list, t)
		}
	}

	return health.Sort(list)
}

// ServeHTTP writes the state of this process.
func (o *Operator) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")

	_ = json.NewEncoder(terminal.NewWriter(w)).Encode(o.Process()) // fails only if the client has disconnected
}

// troubles returns what is wrong with the process.
func (p Process) troubles() (list []health.Trouble) {
	if p.Phase != PhaseRunning {
		reason := p.Phase
		if p.Why != "" {
			reason += ": " + p.Why
		}

		list = append(list, health.Trouble{
			Kind: health.Service, Name: "service", Level: health.Unready, Since: &p.PhaseSince, Reason: reason, Remedy: p.startRemedy(),
		})
	}

	list = append(list, p.unavailable()...)

	for _, t := range p.Tasks {
		if t.Why != "" {
			list = append(list, health.Trouble{
				Kind: health.Task, Name: t.Name, Level: t.Level, Since: t.Since, Reason: "is making no progress: " + t.Why, Remedy: remedyForTask(t.Why),
			})
		}
	}

	for _, s := range p.Stuck {
		list = append(list, degraded(health.Messages, s.Topic, &s.Since, "cannot be published: "+s.Why, cmp.Or(s.Remedy, remedyFor(s.Broker, s.Why))))
	}

	for _, c := range p.Consumers {
		list = append(list, c.troubles()...)
	}

	return health.Sort(list)
}

// unavailable returns the dependencies that are not responding, without duplicates.
// Nothing is applied without Postgres, and nothing arrives or leaves without a broker.
// Another system stops only the consumers that need it, on every replica alike.
func (p Process) unavailable() (list []health.Trouble) {
	brokers := map[string]bool{}

	for _, c := range p.Connected {
		if c.Up() || p.Phase != PhaseRunning {
			continue
		}

		brokers[c.Broker] = true

		reason := "is not responding: " + c.Why

		switch {
		case c.Blocked:
			reason = "is blocked: " + c.Why
		case !c.Established:
			reason = "not connected yet: " + c.Why
		}

		list = append(list, health.Trouble{
			Kind: health.Broker, Name: c.Broker, Level: health.Unready, Since: c.Since, Reason: reason, Remedy: cmp.Or(c.Remedy, remedyFor(c.Broker, c.Why)),
		})
	}

	for _, d := range p.Dependencies {
		if d.Up || brokers[d.Name] {
			continue
		}

		t := degraded(health.Dependency, d.Name, d.Since, "unavailable: "+d.Why, remedyFor(d.Name, d.Why))
		if d.Name == postgres.Dependency || slices.ContainsFunc(p.Connected, func(c broker.State) bool { return c.Broker == d.Name }) {
			t.Level = health.Unready
		}

		list = append(list, t)
	}

	return list
}

func (p Process) startRemedy() string {
	if p.Why == "" {
		return "wait"
	}

	return remedyFor(postgres.Dependency, p.Why)
}

// troubles returns why no messages for the consumer are being applied.
func (c Consumer) troubles() (list []health.Trouble) {
	t := health.Trouble{Kind: health.Consumer, Name: c.Consumer, Level: health.Unready, Since: c.Since}

	switch c.State { //nolint:exhaustive // the others are in no trouble, or the service is
	case Connecting, Disconnected:
		t.Reason, t.Remedy, t.Because = fmt.Sprintf("%s: not receiving messages on %s", c.State, c.Topic), "see the broker", c.Broker
	case NotSubscribed:
		t.Reason, t.Remedy = fmt.Sprintf("not receiving messages on %s: %s", c.Topic, c.Why), cmp.Or(c.Remedy, "see the log; restart the service if it does not resubscribe")
	case Waiting:
		t.Level, t.Reason, t.Remedy, t.Because = health.Degraded, "waiting for "+c.Needs[0], "see the dependency", c.Needs[0]
		if slices.Contains(c.Needs, postgres.Dependency) {
			t.Level = health.Unready
		}
	case Paused:
		t = pausedTrouble(*c.Pause)
	default:
		return nil
	}

	return append(list, t)
}
