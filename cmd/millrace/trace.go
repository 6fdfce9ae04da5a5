package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/trace"
)

func newTrace(opts *options) *cobra.Command {
	var asked string

	return query(opts, &cobra.Command{
		Use: "trace ID", Short: "Show the conversations of a message, an order or a user: what caused each message and what it caused",
		Long: `Show conversations: what caused each message and what it caused. ID is that of a
message, a correlation ID, or the key of messages, such as the id of an order or a user.
For a key, the conversations of its newest messages are shown.`,
		Example: "  millrace trace 0199a1b2-5c3d-7e4f-8a9b-0c1d2e3f4a5b\n  millrace trace order_123",
	}, func(c *call) ([]*trace.Message, error) {
		asked = c.args[0]

		return c.Operator.Trace(c.ctx, asked)
	}, func(w io.Writer, roots []*trace.Message) {
		for _, root := range roots {
			writeTree(w, root, "", "", asked)
		}
	})
}

func writeTree(w io.Writer, m *trace.Message, first, rest, asked string) {
	mark := ""
	if m.ID.String() == asked {
		mark = " <- this one"
	}

	delay := ""
	if created, ok := m.Created(); ok && m.State == trace.Applied {
		delay = fmt.Sprintf(" +%s", max(0, m.At.Sub(created)).Round(time.Millisecond))
	}

	fmt.Fprintf(w, "%s%s  %s %s%s  %s%s\n", first, oneLine(m.Topic, 250), m.State, stamp(m.At), delay, m.ID, mark)

	if m.Detail != "" {
		fmt.Fprintf(w, "%s   %s\n", rest, oneLine(m.Detail, 160))
	}

	for i, next := range m.Caused {
		if i == len(m.Caused)-1 {
			writeTree(w, next, rest+"└─ ", rest+"   ", asked)
		} else {
			writeTree(w, next, rest+"├─ ", rest+"│  ", asked)
		}
	}
}
