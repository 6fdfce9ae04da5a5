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
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
)

func newFailedEdit(opts *options) *cobra.Command {
	var e editing

	return operation(opts, &cobra.Command{
		Use: "edit [ID...]", Short: "Edit the payload of a stopped message, or of many",
		Long: `Edit the payload of a stopped message in $VISUAL or $EDITOR. The edit is stored if
the consumer accepts it; otherwise the command reports the invalid field and lets
you edit again. The original payload is kept; requeue uses the edited one.

An edit that changes the message's key is refused unless --new-key names the new key,
or you confirm it on a terminal. --requeue then requeues the message, with the flags
of ` + "`millrace failed requeue`" + `.

With --patch or --jq, the command edits every selected message instead. --patch applies
a JSON Merge Patch (RFC 7396): it sets the members that the patch gives, and removes
those that are null. --jq replaces each payload by the one value that a jq expression
yields for it. The expression has no access to the environment, files or modules.
Whatever the patch or the expression does not change keeps its order, and numbers keep
their digits. The command leaves a message unchanged, and lists it, if the consumer
would reject the new payload, if the edit would change the message's key, or if the
expression fails. --dry-run validates every message and shows how the edit would change
the first three. --requeue then requeues the messages, unless any were left unchanged.`,
		Example: `  millrace failed edit 17 --why "the shop sent 0"
  millrace failed edit 17 --file order.json --requeue --wait
  millrace failed edit --group 4be1a2c09f3d --patch '{"order":{"quantity":1}}' --dry-run
  millrace failed edit --group 4be1a2c09f3d --jq '.order.quantity |= tonumber' --requeue`,
	}, func(c *call) error {
		if e.patch != "" || e.jq != "" {
			return e.editAll(c)
		}

		if len(c.args) != 1 || e.pace.DryRun {
			return event.Errorf(event.Invalid, "edit takes the id of one message; --patch and --jq edit several, and have a --dry-run")
		}

		id, err := entryID(c.args[0])
		if err != nil {
			return err
		}

		return e.run(c, id)
	}, recorded, e.selected.flags(&e.pace), words(&e.pace), e.wait.flags, yes(&e.requeue, "requeue", "requeue the messages after the edit"),
		text(&e.newKey, "new-key", "", "allow the edit to change the message's key to this one"),
		text(&e.patch, "patch", "", "apply this JSON Merge Patch to every selected message"),
		text(&e.jq, "jq", "", "apply this jq expression to every selected message"),
		func(_ *options, flags *pflag.FlagSet) {
			flags.StringVarP(&e.file, "file", "f", "", `read the payload from this file instead, "-" for standard input`)
		})
}

// editing holds the flags of an edit.
type editing struct {
	file, newKey, patch, jq string
	requeue                 bool
	selected                selecting
	pace                    failed.Pace
	wait                    wait
}

// editAll edits the selected messages, and requeues them if all could be edited.
func (e *editing) editAll(c *call) error {
	if e.file != "" || e.newKey != "" || e.patch != "" && e.jq != "" {
		return event.Errorf(event.Invalid, "--patch, --jq: cannot be combined with each other, --file or --new-key")
	}

	var edited failed.Filter

	err := c.act(&e.selected, "edited", &e.pace, nil, func(c *call, f failed.Filter, pace failed.Pace) (outcome failed.Outcome, err error) {
		if e.jq != "" {
			outcome, err = c.Failed.Transform(c.ctx, f, e.jq, c.by, pace, c.Router.Check)
		} else {
			outcome, err = c.Failed.Patch(c.ctx, f, []byte(e.patch), c.by, pace, c.Router.Check)
		}

		edited = f
		edited.Before = outcome.Newest + 1

		return outcome, err
	})
	if err != nil || !e.requeue || e.pace.DryRun {
		return err
	}

	outcome, err := c.Failed.Requeue(c.ctx, edited, c.by, e.pace, c.Router.Check)

	return c.finishAct("requeued", outcome, &e.wait, err)
}

func (e *editing) run(c *call, id int64) error {
	found, err := c.Operator.Exported(c.ctx, id)
	if err == nil {
		err = found.Actable()
	}

	if err != nil {
		return err
	}

	if found.Overtaken != nil {
		fmt.Fprintf(c.cmd.ErrOrStderr(), "message %d %s\n", id, oneLine(found.Overtaken.String(), 500))
	}

	entry := found.Entry
	save := func(payload []byte) (err error) {
		entry, err = e.save(c, entry, payload)

		return err
	}

	if e.file != "" {
		err = c.editFrom(e.file, save)
	} else {
		err = c.editIn(entry.Current(), save)
	}

	if err != nil {
		return err
	}

	if err := c.printDiff(entry, "the payload is the original"); err != nil || !e.requeue {
		return err
	}

	f := failed.Filter{IDs: []int64{id}, Revision: entry.Revision}
	outcome, err := c.Failed.Requeue(c.ctx, f, c.by, e.pace, c.Router.Check)

	return c.finishAct("requeued", outcome, &e.wait, err)
}

// save stores a payload. On a terminal, it asks whether the key may change.
func (e *editing) save(c *call, entry failed.Entry, payload []byte) (failed.Entry, error) {
	edit := failed.Edit{Revision: entry.Revision, Payload: payload, NewKey: e.newKey}
	saved, err := c.Failed.Edit(c.ctx, entry.ID, edit, c.by, c.Router.Check)

	refusal, ok := errors.AsType[*event.Error](err)
	switch {
	case err == nil:
		return saved, nil
	case !ok || refusal.Kind != event.KeyChange:
		return entry, err
	}

	if !c.interactive() {
		return entry, fmt.Errorf("%w (--new-key)", err)
	}

	change, _ := refusal.Detail.(failed.KeyChange)
	if err := c.confirm(oneLine(err.Error(), 1000) + "\nStore it?"); err != nil {
		return entry, err
	}

	edit.NewKey = change.To

	return c.Failed.Edit(c.ctx, entry.ID, edit, c.by, c.Router.Check)
}

func (c *call) editFrom(name string, save func([]byte) error) error {
	in := c.cmd.InOrStdin()

	if name != "-" {
		opened, err := os.Open(name)
		if err != nil {
			return event.Errorf(event.Invalid, "%v", err)
		}
		defer opened.Close()

		in = opened
	}

	payload, err := io.ReadAll(io.LimitReader(in, maxLine))
	if err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}

	return save(compact(payload))
}

// editIn lets the operator edit payload until it can be saved or they give up. A
// draft that cannot be saved is kept.
func (c *call) editIn(payload []byte, save func([]byte) error) error {
	shown := failed.Pretty(payload)
	if !utf8.Valid(payload) {
		shown = string(payload)
	}

	draft, err := newDraft(shown)
	if err != nil {
		return err
	}

	keep := false

	defer func() {
		if !keep {
			_ = os.RemoveAll(filepath.Dir(draft))
		}
	}()

	kept := func(err error) error {
		keep = true

		return fmt.Errorf("%w (the draft is in %s)", err, draft)
	}

	answers := bufio.NewReader(c.cmd.InOrStdin())

	for {
		err := runEditor(draft)

		edited, readErr := os.ReadFile(draft)
		if readErr != nil {
			return errors.Join(err, fmt.Errorf("reading the draft: %w", readErr))
		}

		if string(edited) == shown { // nothing to lose, and the original keeps its white space
			return cmp.Or(err, save(payload))
		}

		if err != nil {
			return kept(err)
		}

		err = save(compact(edited))
		if err == nil {
			return nil
		}

		if _, rejected := errors.AsType[*event.RejectError](err); !rejected {
			return kept(err)
		}

		fmt.Fprintf(c.cmd.ErrOrStderr(), "not saved: %s\nEdit again? [Y/n] ", oneLine(err.Error(), 2000))

		if answer, readErr := answers.ReadString('\n'); readErr != nil || strings.HasPrefix(strings.ToLower(strings.TrimSpace(answer)), "n") {
			return kept(fmt.Errorf("not saved: %w", err))
		}
	}
}

// newDraft returns the name of a new file with the text. Editors leave copies
// alongside it, so it has a directory of its own.
func newDraft(text string) (name string, err error) {
	dir, err := os.MkdirTemp("", "millrace-failed-*")
	if err != nil {
		return "", fmt.Errorf("creating the draft: %w", err)
	}

	name = filepath.Join(dir, "draft.json")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		return "", errors.Join(fmt.Errorf("writing the draft: %w", err), os.RemoveAll(dir))
	}

	return name, nil
}

// compact removes the indentation of JSON. From other text it removes the final
// newline, which editors add.
func compact(text []byte) []byte {
	if json.Valid(text) {
		return failed.Compact(text)
	}

	return bytes.TrimSuffix(text, []byte("\n"))
}

// runEditor opens a file in the editor. Like git, it allows arguments in the variable.
func runEditor(name string) error {
	editor := cmp.Or(os.Getenv("VISUAL"), os.Getenv("EDITOR"), "vi")
	cmd := exec.Command("sh", "-c", editor+` "$1"`, "sh", name) //nolint:gosec // the operator's own command, on the operator's machine
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stderr, os.Stderr

	if err := cmd.Run(); err != nil {
		return fmt.Errorf("running the editor %s (set VISUAL or EDITOR): %w", editor, err)
	}

	return nil
}
