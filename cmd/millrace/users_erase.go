package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/event"
)

func newUsersErase(opts *options) *cobra.Command {
	var (
		erasing   consumer.Erasing
		confirmed bool
	)

	return operation(opts, &cobra.Command{
		Use: "erase USER", Short: "Make the personal data of a user unreadable; this cannot be undone",
		Long: `Destroy the key that encrypts the user's personal data. The events keep their position
and type, but their data can no longer be decrypted, not even in backups of the events.
Do not restore older backups of the keys (table user_keys).

Notifications to the user are deleted, waiting messages about the user are withdrawn,
failed messages and edits lose their content, and tracked events lose the user and
their properties. The id is kept, so that no later message recreates the user.

The command then searches all tables in the schema for the user's id, names and e-mail
addresses, and lists the rows that contain one, such as messages that cannot be decoded
and reasons given by operators. It also lists tables that its role cannot read. Review
the rows, and pass those about the user to --failed and --activity.

The command first shows what it will do and asks for confirmation. Run it again if a
late message about the user fails. It does not reach backups, logs, brokers or other
systems.`,
		Example: `  millrace users erase alice --dry-run
  millrace users erase alice --why "ticket 4711"
  millrace users erase alice --why "ticket 4711" --search "+49 30 1234567" --failed 17,18 --activity 5`,
	}, func(c *call) error {
		erasing.Subject, erasing.By = c.args[0], c.by

		if erasing.DryRun || confirmed {
			return c.printErasure(c.Router.Erase(c.ctx, erasing))
		}

		if !c.interactive() {
			return errUnasked
		}

		rehearsal := erasing
		rehearsal.DryRun = true

		would, err := c.Router.Erase(c.ctx, rehearsal)
		if err == nil {
			err = c.confirm(fmt.Sprintf("%s\nErase user %s? This cannot be undone.", describeErasure(would), erasing.Subject))
		}

		if err != nil {
			return err
		}

		return c.printErasure(c.Router.Erase(c.ctx, erasing))
	}, recorded, yes(&confirmed, "yes", "do not ask for confirmation"), yes(&erasing.DryRun, "dry-run", "only report what would be done"),
		func(_ *options, flags *pflag.FlagSet) {
			flags.StringArrayVar(&erasing.Search, "search", nil, "also search for this text, such as a former address; may be repeated")
			flags.Int64SliceVar(&erasing.Failed, "failed", nil, "also erase these failed messages")
			flags.Int64SliceVar(&erasing.Actions, "activity", nil, "also erase the reasons given for these operator actions")
		})
}

func (c *call) printErasure(done consumer.Erasure, err error) error {
	if err != nil {
		return err
	}

	return c.print(done, func(w io.Writer) {
		fmt.Fprintln(w, describeErasure(done))

		if done.PersonalID {
			fmt.Fprintln(w, "The id itself is personal data. It is kept, so that no later message recreates the user.")
		}

		for _, name := range done.Skipped {
			fmt.Fprintf(w, "Table %s was not searched: the role cannot read it.\n", name)
		}

		if len(done.Mentions) == 0 {
			return
		}

		fmt.Fprintln(w, "\nThese rows contain the id, a name or an address. Review them:")
		fmt.Fprintln(w, "TABLE\tROW\tCOLUMNS")

		for _, m := range done.Mentions {
			row(w, m.Table, m.Row, strings.Join(m.Columns, ", "))
		}

		if done.More {
			fmt.Fprintln(w, "There are more: a table has too many to list. Omit common words from --search.")
		}
	})
}

func describeErasure(done consumer.Erasure) string {
	verb := "erased"
	if done.DryRun {
		verb = "would erase"
	}

	parts := []string{
		event.Plural(done.Withdrawn, "waiting message", "waiting messages"),
		"the content of " + event.Plural(done.Emptied, "failed message", "failed messages"),
		"the text of " + event.Plural(done.Actions, "operator action", "operator actions"),
	}

	for _, name := range slices.Sorted(maps.Keys(done.Rows)) {
		parts = append(parts, event.Plural(done.Rows[name], "row", "rows")+" of "+name)
	}

	return fmt.Sprintf("%s user %s: %s; %s to review", verb, done.Subject, strings.Join(parts, ", "), event.Plural(len(done.Mentions), "row", "rows"))
}
