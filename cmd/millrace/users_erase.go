package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/consumer"
)

func newUsersErase(opts *options) *cobra.Command {
	return query(opts, &cobra.Command{
		Use: "erase ID", Short: "Make the personal data of a user unreadable; this cannot be undone",
		Long: `Destroy the key that seals the personal data of a user. The events keep their
place and type, but nobody can read them any more, not even in backups of the
events. Do not restore older backups of the keys (table user_keys).

Notifications to the user are deleted, waiting messages about the user are
withdrawn, and failed messages lose their content. Run the command again if a
late message about the user fails. The command does not reach tracked events (they
expire after analytics.retention), brokers or other systems.`,
		Example: "  millrace users erase alice",
	}, func(c *call) (consumer.Erasure, error) { return c.Router.Erase(c.ctx, c.args[0], c.by) },
		func(w io.Writer, done consumer.Erasure) {
			fmt.Fprintf(w, "erased user %s: deleted %d notifications and %d waiting messages, and the content of %d failed messages\n",
				done.Subject, done.Rows["notifications"], done.Withdrawn, done.Emptied)
		}, recorded)
}
