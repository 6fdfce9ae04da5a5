package console

import (
	"cmp"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/health"
	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

func (c *Console) registerNow() { c.show("/now", access.Viewer, c.now) }

func (c *Console) now(r *http.Request) (page, error) {
	_, trend := c.Trends()

	return page{Title: "Now", Section: "/now", Live: true, Body: nowBody(nowView{c.Here(r.Context(), masked(r)), trend})}, nil
}

// nowView is the state of this process, and of what all processes share.
type nowView struct {
	operate.Status

	// Trend is what this process did lately.
	Trend operate.Trend
}

// Verdict sums the state up.
func (v nowView) Verdict() (class, text string) {
	switch health.Worst(v.Troubles) { //nolint:exhaustive // notes change nothing
	case health.Unready:
		return "bad", "Messages of at least one consumer are not being applied."
	case health.Degraded:
		return "warn", "Messages are being applied, and something needs attention."
	default:
		return "good", "Everything works."
	}
}

// levelClass returns the colours of a trouble.
func levelClass(level health.Level) string {
	return map[health.Level]string{health.Unready: "bad", health.Degraded: "warn", health.Note: "note"}[level]
}

// stateClass returns the colours of a consumer's state.
func stateClass(state operate.ConsumerState) string {
	switch state { //nolint:exhaustive // the others are in trouble
	case operate.Running:
		return "good"
	case operate.Paused, operate.Waiting, operate.Connecting:
		return "warn"
	default:
		return "bad"
	}
}

// describe says more about a consumer's state than its name.
func describe(s operate.Consumer) string {
	if s.State == operate.Running {
		return ""
	}

	return s.Describe(stamp)
}

// dependencies returns the lines of brokers, Postgres and other systems.
func (v nowView) dependencies() []line {
	var list []line

	for _, b := range v.Service.Connected {
		l := line{Name: b.Broker, Kind: "broker", Up: b.Up(), Since: b.Since, Why: b.Why}
		if b.Blocked {
			l.Why = "blocked: " + l.Why
		}

		list = append(list, l)
	}

	for _, d := range v.Service.Dependencies {
		if slices.ContainsFunc(list, func(l line) bool { return l.Name == d.Name }) {
			continue // the connection says the same
		}

		kind := "dependency"
		if d.Name == postgres.Dependency {
			kind = "database"
		}

		list = append(list, line{Name: d.Name, Kind: kind, Up: d.Up, Since: d.Since, Why: d.Why})
	}

	return list
}

// line is the state of something that the service needs.
type line struct {
	Name, Kind string
	Up         bool
	Since      *time.Time
	Why        string
}

func (l line) word() string {
	if l.Up {
		return "available"
	}

	return "unavailable"
}

// versions names the releases that replicas run, with the number of each if there are
// several.
func versions(releases map[string]int) string {
	var list []string

	for _, release := range slices.Sorted(maps.Keys(releases)) {
		name := cmp.Or(release, "unknown release")
		if len(releases) > 1 {
			name = strconv.Itoa(releases[release]) + " x " + name
		}

		list = append(list, plain(name))
	}

	return strings.Join(list, ", ")
}

// subject says what is in trouble.
func subject(t health.Trouble) string {
	if t.Kind == health.Messages {
		return title(t.Name)
	}

	return title(t.Kind) + " " + t.Name
}

// screenOf returns the path of the screen on which somebody can act on a trouble, and
// what to do there; or "". The remedies of the others name commands or settings.
func screenOf(t health.Trouble) (path, todo string) {
	switch {
	case t.Kind == health.Messages && t.Name == operate.StoppedMessages:
		return "/failures", "see why, then edit, replay or discard them"
	case t.Kind == health.Consumer && strings.HasPrefix(t.Reason, "paused by"):
		return "/consumers/" + url.PathEscape(t.Name), "resume it when the reason has passed"
	default:
		return "", ""
	}
}
