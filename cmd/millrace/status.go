package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/operate"
)

func newStatus(opts *options) *cobra.Command {
	return operation(opts, &cobra.Command{
		Use: "status", Short: "Show dependencies, consumers and the number of pending messages",
		Long: `Ask the service at http.addr for its dependencies and consumers, and Postgres for
waiting messages. Exit code 1 if the service does not answer, or if anything is
paused or unavailable.`,
		Example: "  millrace status",
	}, func(c *call) error {
		status := c.Operator.Status(c.ctx, c.cfg.HTTP.Addr)
		if err := c.print(status, func(w io.Writer) { writeStatus(w, status) }); err != nil {
			return err
		}

		return status.Err()
	})
}

func writeStatus(w io.Writer, s operate.Status) {
	if s.Service != nil {
		writeProcess(w, *s.Service)
	} else {
		fmt.Fprintf(w, "service\t%s\n", s.Unreachable)
	}

	if s.Service == nil && s.Database != nil {
		for _, p := range s.Database.Paused {
			row(w, p.Consumer, operate.Paused(p, stamp))
		}
	}

	if s.Database != nil {
		writeFacts(w, *s.Database)
	}

	if s.Transaction != nil {
		fmt.Fprintf(w, "vacuum\tblocked by %s\n", describe(*s.Transaction))
	}

	if s.Away != "" {
		fmt.Fprintln(w, "\t")
		fmt.Fprintf(w, "postgres\t%s\n", oneLine(s.Away, 300))
	}
}

func writeProcess(w io.Writer, p operate.Process) {
	fmt.Fprintf(w, "service\tup since %s, on %s\n\nDEPENDENCY\tSTATE\n", stamp(p.StartedAt), p.Brokers)

	for _, d := range p.Dependencies {
		state := "up"
		if !d.Up {
			state = fmt.Sprintf("unavailable since %s: %s", stamp(*d.Since), d.Why)
		}

		row(w, d.Name, oneLine(state, 250))
	}

	fmt.Fprintln(w)
	writeConsumers(w, p.Consumers)
}

func writeFacts(w io.Writer, f operate.Facts) {
	oldest := ""
	if f.OldestDue != nil {
		oldest = ", the oldest since " + stamp(*f.OldestDue)
	}

	fmt.Fprintf(w, "\noutbox\t%d to publish%s; %d scheduled\n", f.OutboxDue, oldest, f.OutboxScheduled)
	fmt.Fprintf(w, "waiting\t%d messages of %d keys\n", f.WaitingMessages, f.WaitingKeys)
	fmt.Fprintf(w, "stopped\t%d messages\n", f.Stopped)
}
