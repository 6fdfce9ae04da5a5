package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/health"
	"github.com/millracehq/millrace/internal/engine/operate"
)

func newStatus(opts *options) *cobra.Command {
	return operation(opts, &cobra.Command{
		Use: "status", Short: "Show dependencies, consumers, backlogs, and what needs attention",
		Long: `Show the dependencies and consumers of the service at health.addr, the outbox and failed
messages in Postgres, and the backlogs at the brokers. Any of these may be unavailable.
The last section lists what needs attention and what to do about it.

Exit code 1 if anything needs attention: the service, Postgres or a broker is not
responding, a consumer is paused or waiting, messages are stopped, or background work
is making no progress. Notes do not count.`,
		Example: "  millrace status",
	}, func(c *call) error {
		status := c.Operator.Status(c.ctx, c.cfg.Health.Addr)
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
		fmt.Fprintf(w, "service\t%s\n", oneLine(s.Unreachable, 300))
	}

	fmt.Fprintln(w)
	writeProgress(w, s)

	if s.Database != nil {
		writeFacts(w, *s.Database)
	}

	if len(s.Troubles) > 0 {
		fmt.Fprintln(w)
		writeTroubles(w, s.Troubles)
	}
}

func writeProcess(w io.Writer, p operate.Process) {
	fmt.Fprintf(w, "service\t%s, up since %s, on %s\n\nDEPENDENCY\tSTATE\n", p.Phase, stamp(p.StartedAt), p.Brokers)

	seen := map[string]bool{}

	for _, b := range p.Connected {
		if b.Up() {
			continue
		}

		seen[b.Broker] = true

		row(w, b.Broker, oneLine(fmt.Sprintf("not connected since %s: %s", stamp(*b.Since), b.Why), maxCell))
	}

	for _, d := range p.Dependencies {
		switch {
		case seen[d.Name]:
		case d.Up:
			row(w, d.Name, "up")
		default:
			row(w, d.Name, oneLine(fmt.Sprintf("unavailable since %s: %s", stamp(*d.Since), d.Why), maxCell))
		}
	}
}

// writeProgress prints each consumer with its backlog, waiting and stopped messages.
func writeProgress(w io.Writer, s operate.Status) {
	table("CONSUMER TOPIC STATE BACKLOG WAITING STOPPED", func(c operate.Consumer) []any {
		backlog, waiting, stopped := "unknown", "unknown", "unknown"

		if counts := s.Counts(); counts != nil {
			failed := counts.FailedByConsumer[c.Consumer]
			backlog, waiting, stopped = s.Backlog(c.Topic), fmt.Sprint(failed.Waiting), fmt.Sprint(failed.Stopped)
		}

		return []any{c.Consumer, c.Topic, c.Describe(stamp), backlog, waiting, stopped}
	})(w, s.Consumers)
}

func writeFacts(w io.Writer, f operate.Facts) {
	fmt.Fprintln(w)

	if c := f.Counts; c != nil {
		oldest := ""
		if c.OldestDue != nil {
			oldest = ", the oldest since " + stamp(*c.OldestDue)
		}

		fmt.Fprintf(w, "outbox\t%d to publish%s; %d scheduled; %d refused\n", c.OutboxDue, oldest, c.OutboxScheduled, c.OutboxRefused)
		fmt.Fprintf(w, "waiting\t%s of %s\n", messages(c.WaitingMessages), event.Plural(c.WaitingKeys, "key", "keys"))
		fmt.Fprintf(w, "stopped\t%s\n", messages(c.Stopped))
	}

	for _, p := range f.Projections {
		fmt.Fprintf(w, "projection\t%s, %s behind\n", p.Name, p.Lag().Round(time.Second))
	}

	for _, g := range f.Gaps {
		fmt.Fprintf(w, "%s\tunknown\n", g.Part)
	}
}

// writeTroubles prints what needs attention. It does not list a trouble that follows
// from another: the table of consumers shows it.
func writeTroubles(w io.Writer, list []health.Trouble) {
	consequences := map[string][]string{}

	for _, t := range list {
		if t.Because != "" {
			consequences[t.Because] = append(consequences[t.Because], t.Name)
		}
	}

	for _, t := range list {
		if t.Because != "" {
			continue
		}

		since := ""
		if t.Since != nil {
			since = " since " + stamp(*t.Since)
		}

		stops := ""
		if waiting := consequences[t.Name]; len(waiting) > 0 {
			stops = "; stops " + strings.Join(waiting, ", ")
		}

		fmt.Fprintf(w, "%s: %s%s: %s%s\n  what to do: %s\n", t.Level, t.Name, since, oneLine(t.Reason, maxReason), stops, t.Remedy)
	}
}

// maxReason is the maximum length of a reason in characters.
const maxReason = 500
