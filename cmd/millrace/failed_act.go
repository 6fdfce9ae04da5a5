package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/operate"
)

// action is the result of a command that acts on failed messages.
type action struct {
	*failed.Outcome
	*failed.Retried

	// Held says what is holding up the messages that are now due.
	Held []operate.Held `json:"held,omitempty"`
	// Unknown says why Held could not be determined. The action itself succeeded.
	Unknown string `json:"unknown,omitempty"`
	// Request identifies the action in `millrace activity` and in the HTTP API.
	Request uuid.UUID `json:"request"`
	// Progress is set with --wait.
	Progress *failed.Progress `json:"progress,omitempty"`
}

// act is like operation, for a command that acts on the selected stopped messages. It
// prints the outcome even if the action ended early. w is nil for an action that
// retries nothing.
func act(opts *options, cmd *cobra.Command, done string, pace *failed.Pace, w *wait,
	do func(*call, failed.Filter, failed.Pace) (failed.Outcome, error), flags ...flag,
) *cobra.Command {
	var s selecting

	return operation(opts, cmd, func(c *call) error {
		return c.act(&s, done, pace, w, do)
	}, append(flags, s.flags(pace), recorded)...)
}

// selecting holds the flags that select stopped messages to act on.
type selecting struct {
	selection

	confirmed bool
}

func (s *selecting) flags(pace *failed.Pace) flag {
	return func(o *options, flags *pflag.FlagSet) {
		s.selection.flags(o, flags)
		yes(&s.all, "all", "select all stopped messages")(o, flags)
		yes(&pace.DryRun, "dry-run", "only report what would be done")(o, flags)
		yes(&s.confirmed, "yes", "do not ask for confirmation on a terminal")(o, flags)
	}
}

// act acts on the selected messages and prints the outcome, even if the action ended
// early.
func (c *call) act(s *selecting, done string, pace *failed.Pace, w *wait, do func(*call, failed.Filter, failed.Pace) (failed.Outcome, error)) error {
	f, err := s.toActOn(c)
	if err != nil {
		return err
	}

	if f.IDs == nil && !pace.DryRun && !s.confirmed && c.interactive() {
		if f.Before, err = c.preview(f, *pace, do); err != nil {
			return err
		}
	}

	progress, end := showProgress(c.cmd.Name())
	pace.Progress = func(at, total int) { progress(int64(at), int64(total)) }

	outcome, err := do(c, f, *pace)

	end()

	if outcome.DryRun {
		done = "would " + c.cmd.Name()
	}

	return c.finishAct(done, outcome, w, err)
}

// previewed is the number of selected messages that a preview lists.
const previewed = 5

// preview shows what an action would do and asks for confirmation. It returns the ID
// after that of the newest selected message, so that the action includes no later ones.
func (c *call) preview(f failed.Filter, pace failed.Pace, do func(*call, failed.Filter, failed.Pace) (failed.Outcome, error)) (before int64, err error) {
	pace.DryRun = true

	would, err := do(c, f, pace)
	if err != nil || would.Selected == 0 {
		return would.Newest + 1, err
	}

	f.State = failed.Stopped

	first, err := c.Failed.Summaries(c.ctx, f, previewed)
	if err != nil {
		return 0, err
	}

	var text strings.Builder

	for _, e := range first {
		fmt.Fprintf(&text, "  %d %s %s %s\n", e.ID, e.Consumer, oneLine(e.Key, 60), oneLine(e.Error, 100))
	}

	if more := would.Selected - len(first); more > 0 {
		fmt.Fprintf(&text, "  and %d more\n", more)
	}

	writeOutcome(&text, "would "+c.cmd.Name(), would)
	fmt.Fprintf(&text, "%s %s?", strings.ToUpper(c.cmd.Name()[:1])+c.cmd.Name()[1:], messages(would.Done))

	return would.Newest + 1, c.confirm(text.String())
}

// finishAct prints the outcome of an action that ended with err, follows its messages
// if asked to, and returns the error that determines the exit code.
func (c *call) finishAct(done string, outcome failed.Outcome, w *wait, err error) error {
	result := action{Outcome: &outcome, Request: c.by.Request}

	if w != nil && !outcome.DryRun && outcome.Done > 0 {
		if followErr := c.follow(&result, outcome.Consumers, w); err == nil {
			err = followErr
		}
	}

	printErr := c.print(result, func(out io.Writer) {
		writeOutcome(out, done, outcome)
		writeFollowed(out, result)
	})

	switch {
	case err != nil:
		return err
	case printErr != nil:
		return printErr
	case outcome.RefusedBy[event.Rejected] > 0:
		return errRefused
	case outcome.Refused+outcome.Changed > 0:
		return errLeft
	default:
		return result.err()
	}
}

func writeOutcome(w io.Writer, done string, o failed.Outcome) {
	fmt.Fprintf(w, "%s %d of %s\n", done, o.Done, event.Plural(o.Selected, "stopped message", "stopped messages"))

	for _, d := range o.Diffs {
		fmt.Fprintf(w, "message %d:\n", d.ID)
		writeDiff(w, d.Diff)
	}

	if o.Unchanged > 0 {
		fmt.Fprintf(w, "the edit changes nothing in %s\n", messages(o.Unchanged))
	}

	for _, r := range o.Refusals {
		fmt.Fprintf(w, "refused message %d: %s\n", r.ID, oneLine(r.Error, 300))
	}

	if more := o.Refused - len(o.Refusals); more > 0 {
		fmt.Fprintf(w, "refused %d more\n", more)
	}

	if n := o.RefusedBy[event.Overtaken]; n > 0 {
		fmt.Fprintf(w, "--overtaken also requeues %s\n", event.Plural(n, "overtaken message", "overtaken messages"))
	}

	if o.Changed > 0 {
		fmt.Fprintf(w, "%s no longer stopped, because of changes in the meantime\n",
			event.Plural(o.Changed, "selected message was", "selected messages were"))
	}
}

// wait holds the flags of a command that can follow the messages that it retries.
type wait struct {
	yes     bool
	timeout time.Duration
}

func (w *wait) flags(_ *options, flags *pflag.FlagSet) {
	flags.BoolVar(&w.yes, "wait", false, "wait for the outcome and report it")
	flags.DurationVar(&w.timeout, "timeout", 5*time.Minute, "with --wait, stop waiting after this long")
}

// follow adds to result what is holding up the messages that are now due; messages is
// their number by consumer. With --wait, it also adds what became of them. Ending the
// wait does not affect the messages.
func (c *call) follow(result *action, messages map[string]int, w *wait) error {
	ctx := context.WithoutCancel(c.ctx)

	result.Held, result.Unknown = c.Operator.HeldAfter(ctx, c.cfg.Health.Addr, messages)
	if !w.yes {
		return nil
	}

	for _, h := range result.Held { // the operator may want to do something about it
		fmt.Fprintln(c.cmd.ErrOrStderr(), oneLine(h.String(), 500))
	}

	waiting, cancel := context.WithTimeout(c.ctx, w.timeout)
	defer cancel()

	progress, end := showProgress("tried")
	p, err := c.Operator.Follow(waiting, c.by.Request, func(p failed.Progress) {
		progress(int64(p.Messages-p.Untried), int64(p.Messages))
	})

	end()

	if err != nil {
		return err
	}

	result.Progress = &p
	result.Held, result.Unknown = c.Operator.HeldAfter(ctx, c.cfg.Health.Addr, p.Consumers)

	return nil
}

// writeFollowed prints what follow found.
func writeFollowed(w io.Writer, a action) {
	if p := a.Progress; p != nil {
		fmt.Fprintf(w, "applied %d of %d\n", p.Applied, p.Messages)

		for _, n := range []struct {
			count int
			what  string
		}{
			{p.Stopped, "stopped again"}, {p.Waiting, "waiting again"}, {p.Withdrawn, "withdrawn: discarded or erased"},
			{p.Untried, "not tried yet, but due"},
		} {
			if n.count > 0 {
				fmt.Fprintf(w, "%d %s\n", n.count, n.what)
			}
		}

		for _, c := range p.Causes {
			fmt.Fprintf(w, "  %d %s, group %s of %s: %s\n", c.Messages, c.State, c.Group, c.Consumer, oneLine(c.Cause, 200))
		}
	}

	for _, h := range a.Held {
		fmt.Fprintln(w, oneLine(h.String(), 500))
	}

	if a.Unknown != "" {
		fmt.Fprintf(w, "could not determine what is holding up the messages: %s\n", oneLine(a.Unknown, 300))
	}
}

// err returns an error if messages were not applied or not tried.
func (a action) err() error {
	switch p := a.Progress; {
	case p == nil:
		return nil
	case p.Stopped+p.Waiting+p.Withdrawn > 0:
		return event.Errorf(event.Conflict, "%d of %s were not applied", p.Stopped+p.Waiting+p.Withdrawn, messages(p.Messages))
	case p.Untried > 0:
		return event.Errorf(event.Conflict, "%d of %s not tried in time", p.Untried, messages(p.Messages))
	default:
		return nil
	}
}
