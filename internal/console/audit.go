package console

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/invariant"
	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/engine/scrub"
)

// auditTimeout bounds an audit that the console has started.
const auditTimeout = time.Hour

// audits runs audits in the background, one at a time, and remembers the last one. The
// result is that of this process: another replica has its own.
type audits struct {
	ctx  context.Context //nolint:containedctx // it ends when the server does
	stop context.CancelFunc

	mu   sync.Mutex
	last auditRun
}

// auditRun is an audit that is running or has ended.
type auditRun struct {
	// Mode is what was asked for; it is empty before the first run.
	Mode           auditMode
	Who            string
	Started, Ended time.Time
	Step, Steps    int
	What           string
	Result         operate.Audit
	Failure        string
}

// auditMode is what an audit does about violations.
type auditMode string

const (
	auditRead    auditMode = "check"
	auditPreview auditMode = "preview"
	auditRepair  auditMode = "repair"
)

// Running reports whether the audit has not ended.
func (a auditRun) Running() bool { return a.Mode != "" && a.Ended.IsZero() }

func newAudits() *audits {
	a := &audits{}
	a.ctx, a.stop = context.WithCancel(context.Background()) //nolint:gosec // the server calls stop

	return a
}

func (c *Console) registerAudit() {
	c.show("/audit", access.Viewer, c.audit)
	c.act("/audit", access.Operator, c.startAudit)
}

func (c *Console) audit(r *http.Request) (page, error) {
	return page{Title: "Audit", Section: "/audit", Live: true, Body: auditBody(auditView{
		auditRun: c.audits.state(), Checks: c.Auditor.List(), May: mayAct(r), Masked: masked(r),
	})}, nil
}

func (c *Console) startAudit(r *http.Request) (page, error) {
	mode := auditMode(r.FormValue("mode"))
	if err := event.KnownName("mode", mode, []auditMode{auditRead, auditPreview, auditRepair}); err != nil {
		return page{}, err
	}

	if mode == "" {
		mode = auditRead
	}

	by := actor(r)
	if err := c.audits.start(auditRun{Mode: mode, Who: by.Who, Started: time.Now()}, func(ctx context.Context, options invariant.Options) (operate.Audit, error) {
		return c.Audit(ctx, options, mode != auditRead, mode == auditPreview, by)
	}, r.Form["only"]); err != nil {
		return page{}, err
	}

	return page{}, redirectError{"/audit"}
}

// start runs an audit in the background, unless one is running.
func (a *audits) start(begun auditRun, audit func(context.Context, invariant.Options) (operate.Audit, error), only []string) error {
	a.mu.Lock()
	defer a.mu.Unlock()

	if a.last.Running() {
		return event.Errorf(event.Conflict, "%s has started an audit that is still running; its result appears on this screen", a.last.Who)
	}

	a.last = begun

	go func() {
		ctx, cancel := context.WithTimeout(a.ctx, auditTimeout)
		defer cancel()

		result, err := audit(ctx, invariant.Options{Only: only, Progress: a.progress})

		a.mu.Lock()
		defer a.mu.Unlock()

		a.last.Result, a.last.Ended = result, time.Now()
		if err != nil {
			a.last.Failure = event.Text(scrub.Text(err.Error()))
		}
	}()

	return nil
}

func (a *audits) progress(step, steps int, what string) {
	a.mu.Lock()
	defer a.mu.Unlock()

	a.last.Step, a.last.Steps, a.last.What = step, steps, what
}

func (a *audits) state() auditRun {
	a.mu.Lock()
	defer a.mu.Unlock()

	return a.last
}

// auditView is the board of invariants.
type auditView struct {
	auditRun

	Checks      []invariant.Listed
	May, Masked bool
}

// checkView is an invariant with its result in the last audit, if it was checked.
type checkView struct {
	invariant.Listed

	Result *invariant.Result
}

// checks returns all invariants.
func (v auditView) checks() []checkView {
	var list []checkView

	for _, listed := range v.Checks {
		check := checkView{Listed: listed}
		if i := slices.IndexFunc(v.Result.Checks, func(r invariant.Result) bool { return r.Name == listed.Name }); i >= 0 {
			check.Result = &v.Result.Checks[i]
		}

		list = append(list, check)
	}

	return list
}

// violated returns the invariants that do not hold.
func (v auditView) violated() []checkView {
	return slices.DeleteFunc(v.checks(), func(c checkView) bool { return c.Result == nil || c.Result.Violations == 0 })
}

// verdict sums up the last audit.
func (v auditView) verdict() (class, text string) {
	violated, violations := v.violated(), int64(0)
	for _, c := range violated {
		violations += c.Result.Violations
	}

	switch {
	case v.Failure != "":
		return "bad", "The audit failed: " + v.Failure
	case len(violated) > 0:
		return "bad", fmt.Sprintf("%s of %s", event.Plural(violations, "violation", "violations"), event.Plural(len(violated), "invariant", "invariants"))
	default:
		return "good", event.Plural(len(v.Result.Checks), "invariant holds", "invariants hold")
	}
}

// repairable returns the checks that have violations with a single safe repair.
func (v auditView) repairable() (names []string, violations int64) {
	for _, c := range v.violated() {
		if c.Repairable {
			names, violations = append(names, c.Name), violations+c.Result.Violations
		}
	}

	return names, violations
}

// shownRepairs is the number of repairs listed.
const shownRepairs = 100

// repairs returns the repairs to list.
func (v auditView) repairs() []invariant.Repair {
	return v.Result.Repairs[:min(len(v.Result.Repairs), shownRepairs)]
}

// repaired returns how many repairs were made or, in a preview, would be.
func (v auditView) repaired() (made, refused int) {
	for _, r := range v.Result.Repairs {
		if r.Refused == "" {
			made++
		} else {
			refused++
		}
	}

	return made, refused
}
