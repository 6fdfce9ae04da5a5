package main

import (
	"cmp"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
)

func newFailedRetry(opts *options) *cobra.Command {
	var (
		filter failed.KeyFilter
		all    bool
		w      wait
	)

	return operation(opts, &cobra.Command{
		Use: "retry [ID]", Short: "Retry waiting messages now",
		Long: `Make waiting keys due now; the running service then tries the first message of each.
If a key's consumer is paused or waiting for a dependency, the command reports what
is holding it up; the key is tried as soon as the consumer starts taking messages again.

--wait waits until the first message of each key has been tried. Exit code 1 if some
failed again or were not tried in time.`,
		Example: `  millrace failed retry 17
  millrace failed retry --consumer fulfilment.charge --wait --why "the provider is back"`,
	}, func(c *call) error {
		ids, err := entryIDs(c.args)
		if err != nil {
			return err
		}

		for _, id := range ids {
			filter.ID = id
		}

		due, err := c.Operator.Retry(c.ctx, filter, all, c.by)
		if err != nil {
			return err
		}

		result := action{Retried: &due, Request: c.by.Request}

		var followErr error
		if due.Due > 0 {
			followErr = c.follow(&result, due.Consumers, &w)
		}

		// Print the outcome, even if following the messages failed.
		err = c.print(result, func(out io.Writer) {
			fmt.Fprintf(out, "%s due now, with %s\n", event.Plural(due.Due, "key is", "keys are"), messages(due.Messages))
			writeFollowed(out, result)
		})

		return cmp.Or(followErr, err, result.err())
	}, recorded, keyFlags(&filter), yes(&all, "all", "select all waiting keys"), w.flags)
}
