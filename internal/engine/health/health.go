// Package health describes what is making no progress, or what somebody should know
// about, in one form for status, /readyz and the metrics: what, since when, why, and what
// to do.
package health

import (
	"cmp"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/millracehq/millrace/internal/engine/scrub"
)

// Level is how much a trouble matters.
type Level string

// Levels.
const (
	// Unready: this process does not apply the messages for a consumer, although no
	// operator asked for that.
	Unready Level = "unready"
	// Degraded: somebody has to act, or something waits for another system.
	Degraded Level = "degraded"
	// Note: the service works as configured, but perhaps not as expected.
	Note Level = "note"
)

// rank orders levels, most important first.
func (l Level) rank() int { return slices.Index([]Level{Unready, Degraded, Note}, l) }

// Kinds of things that can be in trouble.
const (
	Service    = "service"
	Dependency = "dependency"
	Broker     = "broker"
	Consumer   = "consumer"
	Task       = "task"
	Messages   = "messages"
	Config     = "configuration"
	Postgres   = "postgres"
)

// Trouble is something that is making no progress, or that somebody should know about.
type Trouble struct {
	Kind  string `json:"kind"`
	Name  string `json:"name"`
	Level Level  `enum:"unready,degraded,note" json:"level"`
	// Since is when it began, if that is known.
	Since *time.Time `json:"since,omitempty"`
	// Reason says what is wrong, Remedy what to do about it.
	Reason string `json:"reason"`
	Remedy string `json:"remedy"`
	// Because names the trouble that causes this one.
	Because string `json:"because,omitempty"`
}

// Sort orders troubles by level, kind and name.
func Sort(list []Trouble) []Trouble {
	slices.SortStableFunc(list, func(a, b Trouble) int {
		return cmp.Or(a.Level.rank()-b.Level.rank(), strings.Compare(a.Kind, b.Kind), strings.Compare(a.Name, b.Name))
	})

	return list
}

// Worst returns the most important level in list, or "".
func Worst(list []Trouble) Level {
	worst := Level("")

	for _, t := range list {
		if worst == "" || t.Level.rank() < worst.rank() {
			worst = t.Level
		}
	}

	return worst
}

// Loop is work that a process repeats in the background until it stops. It logs the first
// of several consecutive failures, and the recovery.
type Loop struct {
	name   string
	level  Level
	limit  time.Duration
	logger *slog.Logger

	mu sync.Mutex
	// began is the time of the first report, or zero before the loop has begun.
	began time.Time
	// done is the end of the last successful round.
	done time.Time
	// failed is the time of the first failure since the last success, why the last
	// error, and logged when that was last logged.
	failed, logged time.Time
	why            string
}

// remindEvery is how often a persistent failure is logged again.
const remindEvery = 10 * time.Minute

// NewLoop returns the tracker of a loop whose rounds normally take less than limit.
// The level says how much it matters if the loop makes no progress.
func NewLoop(name string, level Level, limit time.Duration, logger *slog.Logger) *Loop {
	return &Loop{name: name, level: level, limit: limit, logger: logger}
}

// Begin records that the loop has started.
func (l *Loop) Begin() {
	l.mu.Lock()
	defer l.mu.Unlock()

	l.began = time.Now()
}

// Report records the end of a round.
func (l *Loop) Report(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()

	now := time.Now()

	if err == nil {
		if !l.failed.IsZero() {
			l.logger.Info(l.name+" recovered", slog.Duration("failed_for", now.Sub(l.failed).Round(time.Millisecond)))
		}

		l.done, l.failed, l.why = now, time.Time{}, ""

		return
	}

	if l.failed.IsZero() {
		l.failed, l.logged = now, time.Time{}
	}

	if now.Sub(l.logged) >= remindEvery {
		l.logged = now
		l.logger.Warn(l.name+" failed; retrying", slog.Any("error", err), slog.Duration("failing_for", now.Sub(l.failed).Round(time.Second)))
	}

	l.why = scrub.Text(err.Error())
}

// Silent is the start of the reason given for a loop that has stopped reporting.
const Silent = "no run has finished since then"

// State is the state of a loop.
type State struct {
	Name  string `json:"name"`
	Level Level  `json:"level"`
	// Since is when the loop began to fail or last made progress, Why the last
	// error. Both are empty while the loop works.
	Since *time.Time `json:"since,omitempty"`
	Why   string     `json:"why,omitempty"`
}

// State returns the state of the loop. A loop that has not begun counts as working.
func (l *Loop) State() State {
	l.mu.Lock()
	defer l.mu.Unlock()

	last := l.done
	if l.began.After(last) {
		last = l.began
	}

	switch {
	case !l.failed.IsZero():
		since := l.failed.UTC()

		return State{Name: l.name, Level: l.level, Since: &since, Why: l.why}
	case !last.IsZero() && time.Since(last) > l.limit:
		since := last.UTC()

		return State{Name: l.name, Level: l.level, Since: &since, Why: Silent + ", expected one every " + l.limit.String()}
	default:
		return State{Name: l.name, Level: l.level}
	}
}
