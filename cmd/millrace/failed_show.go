package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/failed"
)

func newFailedShow(opts *options) *cobra.Command {
	var diff bool

	return operation(opts, &cobra.Command{
		Use: "show ID", Short: "Show a failed message, its error and what operators have done about it",
		Example: `  millrace failed show 17
  millrace failed show 17 --diff`,
	}, func(c *call) error {
		id, err := entryID(c.args[0])
		if err != nil {
			return err
		}

		shown, err := c.Operator.Exported(c.ctx, id)

		switch {
		case err != nil:
			return err
		case diff:
			return c.printDiff(shown.Entry, "the payload has not been edited")
		default:
			return c.print(shown, func(w io.Writer) { writeEntry(w, shown) })
		}
	}, yes(&diff, "diff", "show only the changes to the payload"))
}

func writeEntry(w io.Writer, e failed.Exported) {
	row(w, "id", e.ID)
	row(w, "state", state(e.Entry))
	row(w, "topic", e.Topic)
	row(w, "consumer", e.Consumer)
	row(w, "reason", e.Reason)
	row(w, "error", oneLine(e.Error, 2000))
	row(w, "group", e.Group+", "+e.Cause)
	row(w, "message", e.MessageID)
	row(w, "origin", e.Origin)
	row(w, "key", e.Key)
	row(w, "deliveries", fmt.Sprintf("%d, first %s by %s, last %s by %s", e.Deliveries,
		stamp(e.FirstAt), oneLine(e.FirstRelease, 40), stamp(e.LastAt), oneLine(e.LastRelease, 40)))

	if e.Overtaken != nil {
		row(w, "overtaken", e.Overtaken.String())

		for i, id := range e.Overtaken.LastIDs {
			row(w, "", fmt.Sprintf("later message %d from the last: %s", i+1, id))
		}
	}

	if e.Attempts > 0 {
		row(w, "attempts", e.Attempts)
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

	return fmt.Sprintf("%s (%d bytes; --json prints them all)", payload, len(data))
}
