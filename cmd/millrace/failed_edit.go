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
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
)

func newFailedEdit(opts *options) *cobra.Command {
	var file string

	return operation(opts, &cobra.Command{
		Use: "edit ID", Short: "Edit the payload of a stopped message in $VISUAL or $EDITOR",
		Long: `Edit the payload of a stopped message in $VISUAL or $EDITOR. The edit is stored if
the consumer accepts it; otherwise the command reports the invalid field and lets
you edit again. The original payload is kept; requeue uses the edited one.`,
		Example: `  millrace failed edit 17 --why "the shop sent 0"
  millrace failed edit 17 --file order.json`,
	}, func(c *call) error {
		id, err := entryID(c.args[0])
		if err != nil {
			return err
		}

		entry, err := c.Failed.Get(c.ctx, id)
		if err == nil {
			err = entry.Actable()
		}

		if err != nil {
			return err
		}

		save := func(payload []byte) (err error) {
			entry, err = c.Failed.Edit(c.ctx, id, entry.Revision, payload, c.by, c.Router.Check)

			return err
		}

		if file != "" {
			err = c.editFrom(file, save)
		} else {
			err = c.editIn(entry.Current(), save)
		}

		if err != nil {
			return err
		}

		return c.printDiff(entry, "the payload is the original")
	}, recorded, func(_ *options, flags *pflag.FlagSet) {
		flags.StringVarP(&file, "file", "f", "", `read the payload from this file instead, "-" for standard input`)
	})
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

	draft, err := writeDraft(shown)
	if err != nil {
		return err
	}

	answers := bufio.NewReader(c.cmd.InOrStdin())

	for {
		edited, err := runEditor(draft)
		if err != nil {
			return fmt.Errorf("%w (the draft is in %s)", err, draft)
		}

		if string(edited) == shown {
			edited = payload // unchanged, so keep the original white space
		} else {
			edited = compact(edited)
		}

		err = save(edited)
		if err == nil {
			_ = os.Remove(draft)

			return nil
		}

		if _, rejected := errors.AsType[*event.RejectError](err); !rejected {
			return fmt.Errorf("%w (the draft is in %s)", err, draft)
		}

		fmt.Fprintf(c.cmd.ErrOrStderr(), "not saved: %s\nEdit again? [Y/n] ", oneLine(err.Error(), 2000))

		if answer, readErr := answers.ReadString('\n'); readErr != nil || strings.HasPrefix(strings.ToLower(strings.TrimSpace(answer)), "n") {
			return fmt.Errorf("not saved: %w (the draft is in %s)", err, draft)
		}
	}
}

func writeDraft(text string) (name string, err error) {
	draft, err := os.CreateTemp("", "millrace-failed-*.json")
	if err != nil {
		return "", fmt.Errorf("creating the draft: %w", err)
	}

	_, err = draft.WriteString(text)
	if err := errors.Join(err, draft.Close()); err != nil {
		return "", fmt.Errorf("writing the draft: %w", err)
	}

	return draft.Name(), nil
}

// compact removes the indentation of JSON. From other text it removes the final
// newline, which editors add.
func compact(text []byte) []byte {
	if json.Valid(text) {
		return failed.Compact(text)
	}

	return bytes.TrimSuffix(text, []byte("\n"))
}

// runEditor opens a file in the editor and returns its content afterwards. Like
// git, it allows arguments in the variable.
func runEditor(name string) ([]byte, error) {
	editor := cmp.Or(os.Getenv("VISUAL"), os.Getenv("EDITOR"), "vi")
	cmd := exec.Command("sh", "-c", editor+` "$1"`, "sh", name) //nolint:gosec // the operator's own command, on the operator's machine
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stderr, os.Stderr

	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("running the editor %s (set VISUAL or EDITOR): %w", editor, err)
	}

	text, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("reading the draft: %w", err)
	}

	return text, nil
}
