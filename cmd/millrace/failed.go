package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

func newFailed(opts *options) *cobra.Command {
	return group(opts, &cobra.Command{
		Use: "failed", Short: "List, edit, retry and discard messages that did not go through",
		Long: `List, edit, retry and discard messages that did not go through. A waiting message is
retried later, and later messages with its key wait behind it, in order; other keys are
not affected. A stopped message needs an operator: see why it failed, edit it if
necessary, then requeue or discard it. Every action is recorded with its operator,
time and reason.`,
		Example: `  millrace failed groups
  millrace failed requeue --group 4be1a2c09f3d --why "fixed in 1.4.2"`,
	}, newFailedList, newFailedGroups, newFailedCount, newFailedShow, newFailedEdit, newFailedRequeue, newFailedDiscard,
		newFailedExport, newFailedWaiting, newFailedRetry, newFailedSkip, newFailedNote)
}

// selection holds the flags that select failed messages.
type selection struct {
	operate.Selection

	state string
	all   bool
}

func (s *selection) flags(_ *options, flags *pflag.FlagSet) {
	flags.StringVar(&s.Group, "group", "", "select messages in this group")
	flags.StringVar(&s.Topic, "topic", "", "select messages on this topic")
	flags.StringVar(&s.Consumer, "consumer", "", "select messages for this consumer")
	flags.StringVar(&s.Reason, "reason", "", "select messages that failed for this reason: "+strings.Join(postgres.Column(event.Reasons, func(r event.Reason) string { return string(r) }), ", "))
	flags.StringVar(&s.Key, "key", "", "select messages with this key")
	flags.StringVar(&s.Text, "text", "", "select messages whose key, error or payload contains this text")
	flags.StringVar(&s.MessageID, "message", "", "select the message with this id")
	flags.Var((*moment)(&s.Since.Time), "since", "select failures since this time: 2h or 2006-01-02T15:04:05Z")
	flags.Var((*moment)(&s.Until.Time), "until", "select failures before this time")
}

func (s *selection) stateFlag(value string) flag {
	return text(&s.state, "state", value, "select messages in this state: waiting, stopped, resolved or all")
}

// failedListing is like listing, for a command whose flags select failed messages.
func failedListing[T any](opts *options, cmd *cobra.Command, read func(*call, failed.Filter, int) ([]T, error),
	count func(*call, failed.Filter) (int, error), write func(io.Writer, []T), flags ...flag,
) *cobra.Command {
	var selected selection

	return operation(opts, cmd, func(c *call) error {
		f, err := c.Operator.Filter(c.ctx, selected.Selection, selected.state)
		if err != nil {
			return err
		}

		return list(c, func(limit int) ([]T, error) { return read(c, f, limit) }, func() (int, error) { return count(c, f) }, write)
	}, append(flags, selected.flags, selected.stateFlag(string(failed.Stopped)), limited)...)
}

// toActOn returns the filter specified by an action's flags and arguments. The arguments
// must be ids of existing, stopped messages.
func (s *selection) toActOn(c *call) (failed.Filter, error) {
	ids, err := entryIDs(c.args)
	if err != nil {
		return failed.Filter{}, err
	}

	f, err := c.Operator.ToActOn(c.ctx, s.Selection, ids, s.all)
	if err != nil {
		return f, err
	}

	return f, c.Operator.Actable(c.ctx, ids)
}

func entryIDs(args []string) (ids []int64, err error) {
	for _, arg := range args {
		id, err := entryID(arg)
		if err != nil {
			return nil, err
		}

		ids = append(ids, id)
	}

	return ids, nil
}

func entryID(arg string) (int64, error) {
	id, err := strconv.ParseInt(arg, 10, 64)
	if err != nil || id < 1 {
		return 0, event.Errorf(event.Invalid, "%q is not the id of a message, expected a number", arg)
	}

	return id, nil
}

// moment is a flag that takes a time, in the local time zone unless it specifies one, or
// a duration before now.
type moment time.Time

func (*moment) Type() string   { return "time" }
func (*moment) String() string { return "" }

func (m *moment) Set(text string) error {
	ago, err := time.ParseDuration(text)

	switch {
	case err == nil && ago < 0:
		return fmt.Errorf("is %s, which is in the future, expected a time in the past such as 2h", text)
	case err == nil:
		*m = moment(time.Now().Add(-ago))

		return nil
	}

	t, err := event.ParseTime(text, time.Local)
	if err != nil {
		return fmt.Errorf("%w, or a duration such as 2h", err)
	}

	*m = moment(t)

	return nil
}

// state returns an entry's state or resolution, or "edited".
func state(e failed.Entry) string {
	switch {
	case e.Resolution != "":
		return string(e.Resolution)
	case e.State == failed.Stopped && e.Edited != nil:
		return "edited"
	default:
		return string(e.State)
	}
}

// printDiff prints the changes to an entry's payload, or the text none if nothing changed.
func (c *call) printDiff(e failed.Entry, none string) error {
	diff := failed.Diff(e)

	if c.json {
		return c.print(struct {
			ID   int64  `json:"id"`
			Diff string `json:"diff"`
		}{e.ID, diff}, nil)
	}

	if diff == "" {
		fmt.Fprintln(c.out(), none)
	}

	writeDiff(c.out(), diff)

	return nil
}

func writeDiff(w io.Writer, diff string) {
	for line := range strings.Lines(diff) { // not a table, because payloads contain tabs
		fmt.Fprintln(w, oneLine(strings.TrimRight(line, "\r\n"), 4000))
	}
}
