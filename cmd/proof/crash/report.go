package crash

import (
	"fmt"
	"slices"
	"strings"

	"github.com/millracehq/millrace/internal/engine/crashpoint"
)

// report describes the results of all trials.
func report(brokers []string, trials []Trial) string {
	var b strings.Builder

	b.WriteString(`# Crash points

<!-- written by make crash -->

A crash point is a moment at which the death of the service could lose, repeat or reorder something. For each point and each broker, ` + "`make crash`" + `
sends a load to a process of the service, which kills itself with SIGKILL at the point. Another process takes its place and finishes the work. Then a checker,
which shares no code with the service, compares the tables, the topics, the provider's record and the mail server's with what was sent.

The load has orders that are paid, declined, short of stock, pending or cancelled, orders whose provider does not answer, and orders whose payment stops until an
operator requeues it; deliveries of stock; users with updates, one of whom is updated before being created; an
invalid message, and another body under a known id. Each order, user and delivery is sent twice. The points of expiry and of scheduled messages have a load of their own: orders that are never paid.

`)

	sent := map[string]int{}
	for _, t := range trials {
		sent[t.Broker] += t.sent()
	}

	fmt.Fprintf(&b, "| | | %s |\n|---|---|%s\n", strings.Join(brokers, " | "), strings.Repeat("---|", len(brokers)))

	for _, d := range crashpoint.Declared {
		cells := make([]string, len(brokers))
		for i, kind := range brokers {
			cells[i] = result(trials, kind, d.Point)
		}

		if slices.ContainsFunc(cells, func(c string) bool { return c != "" }) {
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", d.Point, d.Means, strings.Join(cells, " | "))
		}
	}

	if slices.ContainsFunc(trials, func(t Trial) bool { return len(t.Points) > 1 }) {
		b.WriteString(recoveries(brokers, trials))
	}

	b.WriteString("\nAn empty cell means that messages on that broker do not pass the point. Messages sent and checked:")

	for i, kind := range brokers {
		fmt.Fprintf(&b, "%s %d on %s", map[bool]string{true: ","}[i > 0], sent[kind], kind)
	}

	b.WriteString(".\n")

	return b.String()
}

// recoveries describes the trials in which two processes died.
func recoveries(brokers []string, trials []Trial) string {
	var b strings.Builder

	b.WriteString("\n## Deaths during recovery\n\nThe process that takes over dies too: at the second point, the first time that it gets there. It takes Kafka ten seconds to notice a death, so fewer pairs are tried there.\n\n")
	fmt.Fprintf(&b, "| first | second | %s |\n|---|---|%s\n", strings.Join(brokers, " | "), strings.Repeat("---|", len(brokers)))

	for _, first := range firsts {
		for _, second := range seconds {
			cells := make([]string, len(brokers))
			for i, kind := range brokers {
				cells[i] = result(trials, kind, first, second)
			}

			fmt.Fprintf(&b, "| `%s` | `%s` | %s |\n", first, second, strings.Join(cells, " | "))
		}
	}

	return b.String()
}

// result is the result of a trial in a word, or empty if there was none.
func result(trials []Trial, kind string, points ...crashpoint.Point) string {
	at := slices.IndexFunc(trials, func(t Trial) bool { return t.Broker == kind && slices.Equal(t.Points, points) })

	switch {
	case at < 0:
		return ""
	case len(trials[at].Wrong) > 0:
		return "**failed**"
	default:
		return "ok"
	}
}

// sent is the number of messages in the load of a trial.
func (t Trial) sent() int {
	if slices.ContainsFunc(t.Points, isExpiry) {
		return len(newLoad(expiring, 0).messages)
	}

	return len(newLoad(classes, users).all())
}
