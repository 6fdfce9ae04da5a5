package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/app"
	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
)

func newPoison(opts *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "poison", Short: "Work on the messages that could not be applied",
		Long: `Work on the messages that could not be applied: see what failed and why, mend
it, and send it again to the consumer that failed, or discard it. Every action is
recorded with who did it, when and why.`,
		Args: exactly(0),
	}
	cmd.AddCommand(newPoisonList(opts), newPoisonGroups(opts), newPoisonShow(opts), newPoisonDiff(opts),
		newPoisonEdit(opts), newPoisonRequeue(opts), newPoisonDiscard(opts), newPoisonExport(opts))

	return cmd
}

// selection is the flags that select entries.
type selection struct {
	group, topic, consumer, reason, key, message, since, until, state string
	all                                                               bool
}

func (s *selection) flags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&s.group, "group", "", "only entries of this group")
	flags.StringVar(&s.topic, "topic", "", "only messages of this topic")
	flags.StringVar(&s.consumer, "consumer", "", "only messages that failed in this consumer")
	flags.StringVar(&s.reason, "reason", "", "only this reason: malformed, invalid, refused, conflict, too_large, handler_error or panic")
	flags.StringVar(&s.key, "key", "", "only messages with this key")
	flags.StringVar(&s.message, "message", "", "only the message with this id")
	flags.StringVar(&s.since, "since", "", "only what failed since then: 2h, or 2006-01-02T15:04:05Z")
	flags.StringVar(&s.until, "until", "", "only what failed before then")
}

func (s *selection) stateFlag(cmd *cobra.Command, value string) {
	cmd.Flags().StringVar(&s.state, "state", value, "waiting, stopped, resolved or all")
}

func (s *selection) allFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&s.all, "all", false, "all open entries")
}

// filter makes the filter of the flags and of ids.
func (s *selection) filter(ids []string) (failed.Filter, error) {
	f := failed.Filter{
		Group: s.group, Topic: s.topic, Consumer: s.consumer, Reason: event.Reason(s.reason), Key: s.key,
		State: failed.State(s.state),
	}

	switch f.State {
	case "", failed.Waiting, failed.Stopped, failed.Resolved:
	case "all":
		f.State = ""
	default:
		return f, usageError{fmt.Errorf("--state: is %q, expected waiting, stopped, resolved or all", s.state)}
	}

	for _, arg := range ids {
		id, err := entryID(arg)
		if err != nil {
			return f, err
		}

		f.IDs = append(f.IDs, id)
	}

	if s.message != "" {
		id, err := uuid.Parse(s.message)
		if err != nil {
			return f, usageError{fmt.Errorf("--message: is %q, expected a UUID", s.message)}
		}

		f.MessageID = id
	}

	var err error
	if f.Since, err = moment("since", s.since); err != nil {
		return f, err
	}

	f.Until, err = moment("until", s.until)

	return f, err
}

// toActOn is filter for commands that change something: they refuse to act on
// everything by oversight.
func (s *selection) toActOn(cmd *cobra.Command, ids []string) (failed.Filter, error) {
	f, err := s.filter(ids)

	switch {
	case err != nil:
		return f, err
	case !f.Selective() && !s.all:
		return f, usageError{fmt.Errorf("which entries? Name ids or a filter such as --group, or --all: see `%s --help`", cmd.CommandPath())}
	case f.Selective() && s.all:
		return f, usageError{errors.New("--all goes with neither ids nor filters")}
	default:
		return f, nil
	}
}

func entryID(arg string) (int64, error) {
	id, err := strconv.ParseInt(arg, 10, 64)
	if err != nil {
		return 0, usageError{fmt.Errorf("%q is not the id of a failed message, expected a number", arg)}
	}

	return id, nil
}

// moment reads a time, or a duration before now.
func moment(flag, text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}

	if ago, err := time.ParseDuration(text); err == nil {
		return time.Now().Add(-ago), nil
	}

	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04:05", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return t, nil
		}
	}

	return time.Time{}, usageError{fmt.Errorf("--%s: is %q, expected a duration such as 2h or a time such as 2006-01-02T15:04:05Z", flag, text)}
}

func newPoisonList(opts *options) *cobra.Command {
	var (
		selected selection
		limit    int
		by       string
	)

	cmd := &cobra.Command{
		Use: "list", Short: "List the newest poisoned messages, or how many there are by something",
		Example: `  millrace poison list --topic orders.created --since 2h
  millrace poison list --group-by consumer`,
		Args: exactly(0),
		RunE: with(opts, func(cmd *cobra.Command, _ []string, service *app.Service) error {
			f, err := selected.filter(nil)
			if err != nil {
				return err
			}

			switch by {
			case "":
			case "cause":
				return printGroups(cmd, opts, service, f, limit)
			default:
				return printCounts(cmd, opts, service, f, by, limit)
			}

			entries, err := service.Failed.List(cmd.Context(), f, limit)
			if err != nil {
				return err
			}

			return opts.print(cmd.OutOrStdout(), entries, func(w io.Writer) {
				fmt.Fprintln(w, "ID\tSTATE\tTOPIC\tKEY\tREASON\tGROUP\tLAST\tERROR")

				for _, e := range entries {
					fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", e.ID, state(e), e.Topic, oneLine(e.Key, 24), e.Reason, e.Group,
						stamp(e.LastAt), oneLine(e.Error, 100))
				}
			})
		}),
	}
	selected.flags(cmd)
	selected.stateFlag(cmd, "stopped")
	cmd.Flags().IntVar(&limit, "limit", 20, "how many")
	cmd.Flags().StringVar(&by, "group-by", "", "count instead by cause, topic, consumer, reason, key or release")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if !slices.Contains([]string{"", "cause", "topic", "consumer", "reason", "key", "release"}, by) {
			return usageError{fmt.Errorf("--group-by: is %q, expected cause, topic, consumer, reason, key or release", by)}
		}

		return positive("limit", limit)
	}

	return cmd
}

func positive(flag string, n int) error {
	if n < 1 {
		return usageError{fmt.Errorf("--%s: is %d, expected at least 1", flag, n)}
	}

	return nil
}

// state is that of an entry, or how it was resolved, or edited while it is stopped.
func state(e failed.Entry) string {
	if e.State == failed.Stopped && e.Edited != nil {
		return "edited"
	}

	return cmp.Or(string(e.Resolution), string(e.State))
}

func newPoisonGroups(opts *options) *cobra.Command {
	var (
		selected selection
		limit    int
	)

	cmd := &cobra.Command{
		Use: "groups", Short: "List what failed for the same cause together, the most first",
		Args: exactly(0),
		RunE: with(opts, func(cmd *cobra.Command, _ []string, service *app.Service) error {
			if err := positive("limit", limit); err != nil {
				return err
			}

			f, err := selected.filter(nil)
			if err != nil {
				return err
			}

			return printGroups(cmd, opts, service, f, limit)
		}),
	}
	selected.flags(cmd)
	selected.stateFlag(cmd, "stopped")
	cmd.Flags().IntVar(&limit, "limit", 20, "how many")

	return cmd
}

func printGroups(cmd *cobra.Command, opts *options, service *app.Service, f failed.Filter, limit int) error {
	groups, err := service.Failed.Groups(cmd.Context(), f, failed.GroupsAfter{}, limit)
	if err != nil {
		return err
	}

	return opts.print(cmd.OutOrStdout(), groups, func(w io.Writer) {
		fmt.Fprintln(w, "GROUP\tENTRIES\tKEYS\tCONSUMER\tREASON\tFIRST\tLAST\tRELEASES\tCAUSE")

		for _, g := range groups {
			releases := g.FirstRelease
			if g.LastRelease != g.FirstRelease {
				releases += " - " + g.LastRelease
			}

			fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\t%s\t%s\t%s\t%s\n", g.ID, g.Entries, g.Keys, g.Consumer, g.Reason,
				stamp(g.FirstAt), stamp(g.LastAt), oneLine(releases, 40), oneLine(g.Cause, 120))
		}
	})
}

func printCounts(cmd *cobra.Command, opts *options, service *app.Service, f failed.Filter, by string, limit int) error {
	counts, err := service.Failed.CountBy(cmd.Context(), f, by, limit)
	if err != nil {
		return err
	}

	return opts.print(cmd.OutOrStdout(), counts, func(w io.Writer) {
		fmt.Fprintln(w, strings.ToUpper(by)+"\tENTRIES\tKEYS\tFIRST\tLAST")

		for _, c := range counts {
			fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\n", oneLine(c.Value, 60), c.Entries, c.Keys, stamp(c.FirstAt), stamp(c.LastAt))
		}
	})
}

func newPoisonShow(opts *options) *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show a poisoned message as it came, why it failed, and what was done with it", Args: exactly(1),
		RunE: with(opts, func(cmd *cobra.Command, args []string, service *app.Service) error {
			entry, err := find(cmd, args[0], service)
			if err != nil {
				return err
			}

			actions, err := service.Failed.Actions(cmd.Context(), entry.ID)
			if err != nil {
				return err
			}

			shown := failed.Exported{Entry: entry, Actions: append([]activity.Action{}, actions...)}

			return opts.print(cmd.OutOrStdout(), shown, func(w io.Writer) { writeEntry(w, shown) })
		}),
	}
}

func find(cmd *cobra.Command, arg string, service *app.Service) (failed.Entry, error) {
	id, err := entryID(arg)
	if err != nil {
		return failed.Entry{}, err
	}

	return service.Failed.Get(cmd.Context(), id)
}

func writeEntry(w io.Writer, e failed.Exported) {
	fmt.Fprintf(w, "id\t%d\n", e.ID)
	fmt.Fprintf(w, "state\t%s\n", state(e.Entry))
	fmt.Fprintf(w, "topic\t%s\n", e.Topic)
	fmt.Fprintf(w, "consumer\t%s\n", e.Consumer)
	fmt.Fprintf(w, "reason\t%s\n", e.Reason)
	fmt.Fprintf(w, "error\t%s\n", oneLine(e.Error, 2000))
	fmt.Fprintf(w, "group\t%s, %s\n", e.Group, oneLine(e.Cause, 200))
	fmt.Fprintf(w, "message\t%s\n", e.MessageID)
	fmt.Fprintf(w, "origin\t%s\n", oneLine(e.Origin, 200))
	fmt.Fprintf(w, "key\t%s\n", oneLine(e.Key, 200))
	fmt.Fprintf(w, "deliveries\t%d, first %s by %s, last %s by %s\n", e.Deliveries,
		stamp(e.FirstAt), oneLine(e.FirstRelease, 40), stamp(e.LastAt), oneLine(e.LastRelease, 40))

	if e.Attempts > 0 {
		fmt.Fprintf(w, "attempts\t%d\n", e.Attempts)
	}

	headers, _ := json.Marshal(e.Headers)
	fmt.Fprintf(w, "headers\t%s\n", headers)
	fmt.Fprintf(w, "payload\t%s\n", onePayload(e.Payload))

	if e.Edited != nil {
		fmt.Fprintf(w, "edited\t%s\n", onePayload(e.Edited))
	}

	for _, a := range e.Actions {
		detail := ""
		if a.MessageID != nil && *a.MessageID != e.MessageID {
			detail = fmt.Sprintf(", as %s", a.MessageID)
		}

		fmt.Fprintf(w, "%s\t%s by %s%s: %s\n", a.Action, stamp(a.At), oneLine(a.Who, 60), detail, oneLine(cmp.Or(a.Why, "(no reason given)"), 200))
	}
}

func onePayload(data []byte) string {
	payload := strconv.Quote(string(data[:min(len(data), 2000)]))
	if utf8.Valid(data) && len(data) <= 2000 {
		payload = oneLine(string(data), 2000)
	}

	return fmt.Sprintf("%s (%d bytes; --json has all, in base64)", payload, len(data))
}

func newPoisonDiff(opts *options) *cobra.Command {
	return &cobra.Command{
		Use: "diff ID", Short: "Show what was changed in a payload", Args: exactly(1),
		RunE: with(opts, func(cmd *cobra.Command, args []string, service *app.Service) error {
			entry, err := find(cmd, args[0], service)
			if err != nil {
				return err
			}

			return printDiff(cmd, opts, entry, "nobody has edited this entry")
		}),
	}
}

// edit is the JSON output of diff and edit.
type edit struct {
	ID   int64  `json:"id"`
	Diff string `json:"diff"`
}

// printDiff prints the diff of an entry, or says why there is none.
func printDiff(cmd *cobra.Command, opts *options, entry failed.Entry, none string) error {
	diff := failed.Diff(entry)

	if opts.json {
		return opts.print(cmd.OutOrStdout(), edit{ID: entry.ID, Diff: diff}, nil)
	}

	if diff == "" {
		fmt.Fprintln(cmd.OutOrStdout(), none)
	}

	for line := range strings.Lines(diff) { // no table: a payload has tabs
		fmt.Fprintln(cmd.OutOrStdout(), oneLine(strings.TrimRight(line, "\r\n"), 4000))
	}

	return nil
}

func newPoisonEdit(opts *options) *cobra.Command {
	var (
		file string
		by   activity.Actor
	)

	cmd := &cobra.Command{
		Use: "edit ID", Short: "Mend the payload of an open entry in $VISUAL or $EDITOR; the original stays",
		Long: `Mend the payload of an open entry in $VISUAL or $EDITOR. It is stored when the
consumer would take it: otherwise you are told which field is wrong and can edit
again. The original stays as it came; requeue sends what was edited.`,
		Args: exactly(1),
		RunE: with(opts, func(cmd *cobra.Command, args []string, service *app.Service) error {
			entry, err := find(cmd, args[0], service)

			if err == nil {
				err = entry.Actable()
			}

			if err != nil {
				return err
			}

			save := func(payload []byte) (err error) {
				entry, err = service.Failed.Edit(cmd.Context(), entry.ID, entry.Revision, payload, by, service.CheckFor)

				return err
			}

			if file != "" {
				err = editFrom(cmd, file, save)
			} else {
				err = editIn(cmd, entry.Current(), save)
			}

			if err != nil {
				return err
			}

			return printDiff(cmd, opts, entry, "the payload is as it came")
		}),
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", `take the payload from a file instead, "-" for standard input`)
	actorFlags(cmd, &by)

	return cmd
}

func editFrom(cmd *cobra.Command, name string, save func([]byte) error) error {
	in := cmd.InOrStdin()

	if name != "-" {
		opened, err := os.Open(name)
		if err != nil {
			return usageError{err}
		}
		defer opened.Close()

		in = opened
	}

	payload, err := io.ReadAll(io.LimitReader(in, maxLine))
	if err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}

	return save(mended(payload))
}

// editIn lets a person edit payload until it can be saved, or no more. What
// cannot be saved is kept in a file.
func editIn(cmd *cobra.Command, payload []byte, save func([]byte) error) error {
	draft, err := os.CreateTemp("", "millrace-poison-*.json")
	if err != nil {
		return fmt.Errorf("making a draft: %w", err)
	}

	shown := failed.Pretty(payload)
	if !utf8.Valid(payload) {
		shown = string(payload)
	}

	_, err = draft.WriteString(shown)
	if err := errors.Join(err, draft.Close()); err != nil {
		return fmt.Errorf("writing the draft: %w", err)
	}

	answers := bufio.NewReader(cmd.InOrStdin())

	for {
		err := runEditor(draft.Name())
		if err != nil {
			return fmt.Errorf("%w (the draft is in %s)", err, draft.Name())
		}

		edited, err := os.ReadFile(draft.Name())
		if err != nil {
			return fmt.Errorf("reading the draft: %w", err)
		}

		if string(edited) == shown {
			edited = payload // not even the spaces
		} else {
			edited = mended(edited)
		}

		err = save(edited)
		if err == nil {
			_ = os.Remove(draft.Name())

			return nil
		}

		if _, rejected := errors.AsType[*event.RejectError](err); !rejected {
			return fmt.Errorf("%w (the draft is in %s)", err, draft.Name())
		}

		fmt.Fprintf(cmd.ErrOrStderr(), "not saved: %s\nEdit again? [Y/n] ", oneLine(err.Error(), 2000))

		if answer, readErr := answers.ReadString('\n'); readErr != nil || strings.HasPrefix(strings.ToLower(strings.TrimSpace(answer)), "n") {
			return fmt.Errorf("not saved: %w (the draft is in %s)", err, draft.Name())
		}
	}
}

// mended is what a person meant: JSON without the spaces that made it legible,
// other text without the line end that editors add.
func mended(text []byte) []byte {
	if json.Valid(text) {
		return failed.Compact(text)
	}

	return bytes.TrimSuffix(text, []byte("\n"))
}

// runEditor opens a file as git does: the variable may hold arguments too.
func runEditor(name string) error {
	editor := cmp.Or(os.Getenv("VISUAL"), os.Getenv("EDITOR"), "vi")
	cmd := exec.Command("sh", "-c", editor+` "$1"`, "sh", name) //nolint:gosec // the operator's own command, on the operator's machine
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stderr, os.Stderr

	if err := cmd.Run(); err != nil {
		return fmt.Errorf("running the editor %s (set VISUAL or EDITOR): %w", editor, err)
	}

	return nil
}

func newPoisonRequeue(opts *options) *cobra.Command {
	var (
		selected selection
		pace     failed.Pace
		by       activity.Actor
	)

	cmd := &cobra.Command{
		Use: "requeue [ID...]", Short: "Send open entries again to the consumer that failed, in the order of their arrival",
		Long: `Send open entries again to the consumer in which they failed, and to no other,
in the order of their arrival per key. What is edited goes
as edited. Messages keep their ids, so none is applied twice.

An entry whose payload the consumer would reject is refused and stays open: edit
or discard it. So is one behind an older open entry of its key, because order is
kept; --out-of-order sends it all the same. Ctrl-C stops between two entries; run
the same command again to go on.`,
		Example: `  millrace poison requeue 17 18
  millrace poison requeue --group 4be1a2c09f3d --rate 50 --why "fixed in 1.4.2"`,
		RunE: with(opts, func(cmd *cobra.Command, args []string, service *app.Service) error {
			return act(cmd, opts, service, &selected, args, &pace, "requeue", func(f failed.Filter) (failed.Outcome, error) {
				return service.Failed.Requeue(cmd.Context(), f, by, pace, service.CheckFor)
			})
		}),
	}
	selected.flags(cmd)
	selected.allFlag(cmd)
	actorFlags(cmd, &by)
	cmd.Flags().IntVar(&pace.PerSecond, "rate", 0, "entries a second, at most; 0 is as many as can be")
	cmd.Flags().BoolVar(&pace.DryRun, "dry-run", false, "only tell what would be done")
	cmd.Flags().BoolVar(&pace.OutOfOrder, "out-of-order", false, "requeue also what has older open entries of its key")

	return cmd
}

func newPoisonDiscard(opts *options) *cobra.Command {
	var (
		selected selection
		pace     failed.Pace
		by       activity.Actor
	)

	cmd := &cobra.Command{
		Use: "discard [ID...]", Short: "Close open entries for good; a reason is needed, nothing is deleted",
		Example: `  millrace poison discard 17 --why "test order of the shop"`,
		RunE: with(opts, func(cmd *cobra.Command, args []string, service *app.Service) error {
			if strings.TrimSpace(by.Why) == "" {
				return usageError{errors.New("--why: is missing, expected the reason of the discard")}
			}

			return act(cmd, opts, service, &selected, args, &pace, "discard", func(f failed.Filter) (failed.Outcome, error) {
				return service.Failed.Discard(cmd.Context(), f, by, pace)
			})
		}),
	}
	selected.flags(cmd)
	selected.allFlag(cmd)
	actorFlags(cmd, &by)
	cmd.Flags().BoolVar(&pace.DryRun, "dry-run", false, "only tell what would be done")

	return cmd
}

// act runs an action on what is selected and prints how it went, also when it
// was broken off.
func act(cmd *cobra.Command, opts *options, service *app.Service, selected *selection, ids []string, pace *failed.Pace,
	verb string, do func(failed.Filter) (failed.Outcome, error),
) error {
	f, err := selected.toActOn(cmd, ids)

	switch {
	case err != nil:
		return err
	case pace.PerSecond < 0:
		return usageError{fmt.Errorf("--rate: is %d, expected 0 or more", pace.PerSecond)}
	}

	for _, id := range f.IDs {
		entry, err := service.Failed.Get(cmd.Context(), id)

		if err == nil {
			err = entry.Actable()
		}

		if err != nil {
			return err
		}
	}

	show, done := showProgress(verb)
	pace.Progress = func(at, total int) { show(int64(at), int64(total)) }

	outcome, err := do(f)

	done()

	printErr := opts.print(cmd.OutOrStdout(), outcome, func(w io.Writer) { writeOutcome(w, verb, outcome) })

	switch {
	case err != nil:
		return err
	case printErr != nil:
		return printErr
	case outcome.Refused > 0:
		return errRefused
	default:
		return nil
	}
}

func writeOutcome(w io.Writer, verb string, o failed.Outcome) {
	did := verb + "ed"
	if verb == "requeue" {
		did = "requeued"
	}

	if o.DryRun {
		did = "would " + verb
	}

	fmt.Fprintf(w, "%s %d of %d stopped messages\n", did, o.Done, o.Selected)

	for _, r := range o.Refusals {
		fmt.Fprintf(w, "refused message %d: %s\n", r.ID, oneLine(r.Error, 300))
	}

	if more := o.Refused - len(o.Refusals); more > 0 {
		fmt.Fprintf(w, "refused %d more\n", more)
	}
}

func newPoisonExport(opts *options) *cobra.Command {
	var selected selection

	cmd := &cobra.Command{
		Use: "export [ID...]", Short: "Print entries with their payloads, headers and actions, one JSON object a line",
		RunE: with(opts, func(cmd *cobra.Command, args []string, service *app.Service) error {
			f, err := selected.filter(args)
			if err != nil {
				return err
			}

			encoder := json.NewEncoder(cmd.OutOrStdout())
			encoder.SetEscapeHTML(false)

			return service.Failed.Export(cmd.Context(), f, func(e failed.Exported) error { return encoder.Encode(e) })
		}),
	}
	selected.flags(cmd)
	selected.stateFlag(cmd, "all")

	return cmd
}
