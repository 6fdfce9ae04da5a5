package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/outbox"
)

func newRefused(opts *options) *cobra.Command {
	return group(opts, &cobra.Command{
		Use: "refused", Short: "List, retry and discard outgoing messages that the broker refuses",
		Long: `List, retry and discard outgoing messages that the broker refuses, for example because
they are too large for their topic. They wait in the outbox until you retry or discard
them; later messages with the same keys are published.`,
		Example: `  millrace refused list
  millrace refused retry 17 --why "the topic now allows 4 MiB"`,
	}, newRefusedList, newRefusedRetry, newRefusedDiscard)
}

func newRefusedList(opts *options) *cobra.Command {
	var topic string

	return listing(opts, &cobra.Command{
		Use: "list", Short: "List the messages that the broker refuses, oldest first", Example: "  millrace refused list --topic orders.created",
	}, func(c *call, limit int) ([]outbox.Refused, error) {
		return outbox.ListRefused(c.ctx, c.Operator.Pool, topic, limit)
	}, func(c *call) (int, error) {
		return outbox.CountRefused(c.ctx, c.Operator.Pool, topic)
	}, table("ID TOPIC KEY BYTES CREATED WHY", func(r outbox.Refused) []any {
		return []any{r.Seq, r.Topic, r.Key, r.Bytes, r.CreatedAt, r.Why}
	}), text(&topic, "topic", "", "list only messages for this topic"))
}

func newRefusedRetry(opts *options) *cobra.Command {
	return actOnRefused(opts, &cobra.Command{
		Use: "retry [ID...]", Short: "Publish refused messages again",
		Long: `Publish refused messages again. Later messages with the same keys may already have been
published.`,
		Example: `  millrace refused retry 17 --why "the topic now allows 4 MiB"`,
	}, "will be published again", outbox.RetryRefused)
}

func newRefusedDiscard(opts *options) *cobra.Command {
	return actOnRefused(opts, &cobra.Command{
		Use: "discard [ID...]", Short: "Delete refused messages without publishing them; requires --why",
		Example: `  millrace refused discard 17 --why "a test"`,
	}, "discarded", outbox.DiscardRefused)
}

// actOnRefused is like operation, for a command that acts on refused messages.
func actOnRefused(opts *options, cmd *cobra.Command, done string, do outbox.ActOnRefused) *cobra.Command {
	return operation(opts, cmd, func(c *call) error {
		ids, err := entryIDs(c.args)
		if err == nil && len(ids) == 0 {
			err = event.Errorf(event.Invalid, "ID: is missing, expected the ids of refused messages")
		}

		if err != nil {
			return err
		}

		found, err := do(c.ctx, c.Operator.Pool, ids, c.by)
		if err != nil {
			return err
		}

		if len(found) == 0 {
			return event.Missing("refused message", c.args[0])
		}

		return c.print(found, func(w io.Writer) { fmt.Fprintf(w, "%d of %s %s\n", len(found), messages(len(ids)), done) })
	}, recorded)
}
