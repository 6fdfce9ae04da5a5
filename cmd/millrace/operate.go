package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/app"
	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/parked"
	"github.com/millracehq/millrace/internal/engine/poison"
	"github.com/millracehq/millrace/internal/engine/upkeep"
)

func newParked(opts *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "parked", Short: "Look at messages that wait for another attempt; retry or skip them",
		Long: `A message whose handler keeps failing is parked: it is tried again later, and
later messages of the same key wait behind it, in order. Other keys go on.`,
		Args: exactly(0),
	}

	var (
		filter parked.Filter
		limit  int
	)

	list := &cobra.Command{
		Use: "list", Short: "List the keys that wait, those that are due next first", Args: exactly(0),
		RunE: with(opts, func(cmd *cobra.Command, _ []string, service *app.Service) error {
			waiting, err := service.Parked.List(cmd.Context(), filter, limit)
			if err != nil {
				return err
			}

			return opts.print(cmd.OutOrStdout(), waiting, func(w io.Writer) {
				fmt.Fprintln(w, "SEQ\tCONSUMER\tKEY\tBEHIND\tATTEMPTS\tDUE\tERROR")

				for _, m := range waiting {
					fmt.Fprintf(w, "%d\t%s\t%s\t%d\t%d\t%s\t%s\n", m.Seq, m.Consumer, oneLine(m.Key, 60), m.Behind, m.Attempts, stamp(m.DueAt), oneLine(m.Error, 100))
				}
			})
		}),
	}
	list.Flags().StringVar(&filter.Consumer, "consumer", "", "only keys of this consumer")
	list.Flags().StringVar(&filter.Key, "key", "", "only this key")
	list.Flags().IntVar(&limit, "limit", 20, "how many")

	show := &cobra.Command{
		Use: "show SEQ", Short: "Show a parked message and what waits with it", Args: exactly(1),
		RunE: with(opts, func(cmd *cobra.Command, args []string, service *app.Service) error {
			seq, err := sequence(args[0])
			if err != nil {
				return err
			}

			queue, err := service.Parked.Queue(cmd.Context(), seq)
			if err != nil {
				return err
			}

			return opts.print(cmd.OutOrStdout(), queue, func(w io.Writer) { writeQueue(w, queue) })
		}),
	}
	cmd.AddCommand(list, show, newParkedRetry(opts), newParkedSkip(opts))

	return cmd
}

func newParkedRetry(opts *options) *cobra.Command {
	var (
		filter parked.Filter
		by     poison.Actor
		all    bool
	)

	retry := &cobra.Command{
		Use: "retry [SEQ]", Short: "Try parked messages now instead of later", Args: cobra.MaximumNArgs(1),
		RunE: with(opts, func(cmd *cobra.Command, args []string, service *app.Service) (err error) {
			if len(args) == 1 {
				if filter.Seq, err = sequence(args[0]); err != nil {
					return err
				}
			}

			if filter == (parked.Filter{}) && !all {
				return usageError{errors.New("nothing is selected: give a SEQ, --consumer, --key or --all")}
			}

			n, err := service.Parked.Retry(cmd.Context(), filter, by)
			if err != nil {
				return err
			}

			return opts.print(cmd.OutOrStdout(), map[string]int64{"due": n}, func(w io.Writer) {
				fmt.Fprintf(w, "%d keys are due now; the running service tries them within a second\n", n)
			})
		}),
	}
	retry.Flags().StringVar(&filter.Consumer, "consumer", "", "keys of this consumer")
	retry.Flags().StringVar(&filter.Key, "key", "", "this key")
	retry.Flags().BoolVar(&all, "all", false, "all keys")
	actorFlags(retry, &by)

	return retry
}

func newParkedSkip(opts *options) *cobra.Command {
	var by poison.Actor

	skip := &cobra.Command{
		Use: "skip SEQ", Short: "Give up the first message of a key, so that the others go on",
		Long: `The message goes to the poison queue, from where it can be mended and requeued.
The next message of its key is tried at once.`,
		Args: exactly(1),
		RunE: with(opts, func(cmd *cobra.Command, args []string, service *app.Service) error {
			seq, err := sequence(args[0])
			if err != nil {
				return err
			}

			if err := service.Parked.Skip(cmd.Context(), seq, by); err != nil {
				return err
			}

			return opts.print(cmd.OutOrStdout(), map[string]int64{"skipped": seq}, func(w io.Writer) {
				fmt.Fprintf(w, "skipped %d: it is in the poison queue now (millrace poison list)\n", seq)
			})
		}),
	}
	actorFlags(skip, &by)

	return skip
}

func sequence(arg string) (int64, error) {
	seq, err := strconv.ParseInt(arg, 10, 64)
	if err != nil || seq < 1 {
		return 0, usageError{fmt.Errorf("%q is no number of a parked message, expected one that `millrace parked list` shows", arg)}
	}

	return seq, nil
}

func writeQueue(w io.Writer, queue []parked.Message) {
	for i, m := range queue {
		if i > 0 {
			fmt.Fprintln(w)
		}

		fmt.Fprintf(w, "seq\t%d (%d of %d of its key)\n", m.Seq, i+1, len(queue))
		fmt.Fprintf(w, "consumer\t%s\n", m.Consumer)
		fmt.Fprintf(w, "topic\t%s\n", m.Topic)
		fmt.Fprintf(w, "key\t%s\n", oneLine(m.Key, 200))
		fmt.Fprintf(w, "message\t%s\n", m.MessageID)
		fmt.Fprintf(w, "origin\t%s\n", m.Origin)
		fmt.Fprintf(w, "parked\t%s\n", stamp(m.ParkedAt))

		if m.Error != "" {
			fmt.Fprintf(w, "attempts\t%d, last %s\n", m.Attempts, stamp(*m.TriedAt))
			fmt.Fprintf(w, "error\t%s\n", oneLine(m.Error, 2000))
		}

		fmt.Fprintf(w, "payload\t%s\n", oneLine(string(m.Payload), 2000))
	}
}

func newConsumers(opts *options) *cobra.Command {
	cmd := &cobra.Command{Use: "consumers", Short: "Look at consumers; pause and resume them on all replicas", Args: exactly(0)}
	list := &cobra.Command{
		Use: "list", Short: "List the consumers and whether they are paused", Args: exactly(0),
		RunE: with(opts, func(cmd *cobra.Command, _ []string, service *app.Service) error {
			consumers, err := consumersOf(cmd.Context(), service)
			if err != nil {
				return err
			}

			return opts.print(cmd.OutOrStdout(), consumers, func(w io.Writer) { writeConsumers(w, consumers) })
		}),
	}
	cmd.AddCommand(list,
		newDecision(opts, "pause CONSUMER", "Stop a consumer on all replicas until it is resumed; its messages wait", "paused", (*consumer.Router).Pause),
		newDecision(opts, "resume CONSUMER", "Let a paused consumer go on", "resumed", (*consumer.Router).Resume))

	return cmd
}

func newDecision(opts *options, use, short, done string,
	decide func(*consumer.Router, context.Context, string, poison.Actor) (bool, error),
) *cobra.Command {
	var by poison.Actor

	cmd := &cobra.Command{
		Use: use, Short: short, Args: exactly(1),
		RunE: with(opts, func(cmd *cobra.Command, args []string, service *app.Service) error {
			changed, err := decide(service.Router, cmd.Context(), args[0], by)
			if err != nil {
				return err
			}

			return opts.print(cmd.OutOrStdout(), map[string]bool{"changed": changed}, func(w io.Writer) {
				if changed {
					fmt.Fprintf(w, "%s %s; every replica follows within a second\n", done, args[0])
				} else {
					fmt.Fprintf(w, "%s was %s already\n", args[0], done)
				}
			})
		}),
	}
	actorFlags(cmd, &by)

	return cmd
}

// consumersOf returns the consumers with what Postgres knows of them.
func consumersOf(ctx context.Context, service *app.Service) ([]consumer.State, error) {
	pauses, err := consumer.Pauses(ctx, service.Pool)
	if err != nil {
		return nil, err
	}

	states := service.Router.States()

	for i, s := range states {
		for _, p := range pauses {
			if p.Consumer == s.Consumer {
				states[i].Pause = &p
			}
		}
	}

	return states, nil
}

func writeConsumers(w io.Writer, consumers []consumer.State) {
	fmt.Fprintln(w, "CONSUMER\tTOPIC\tSTATE")

	for _, c := range consumers {
		state := "running"

		switch {
		case c.Pause != nil:
			state = fmt.Sprintf("paused by %s since %s: %s", c.Pause.Who, stamp(c.Pause.At), oneLine(c.Pause.Why, 100))
		case len(c.Waits) > 0:
			state = "waits for " + strings.Join(c.Waits, " and ")
		}

		fmt.Fprintf(w, "%s\t%s\t%s\n", c.Consumer, c.Topic, state)
	}
}

// report is what `millrace status` prints.
type report struct {
	Service *app.Status `json:"service,omitempty"`
	// Unreachable is why there is no Service.
	Unreachable string `json:"unreachable,omitempty"`
	// Database is nil if Postgres does not answer; Away is why.
	Database *app.Facts `json:"database,omitempty"`
	Away     string     `json:"database_unreachable,omitempty"`
	// Transaction is one that is open for long, and holds back vacuum.
	Transaction *upkeep.Transaction `json:"old_transaction,omitempty"`
}

func newStatus(opts *options) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show what works, what is paused since when and why, and what waits",
		Long: `Ask the service at http.addr what it can reach and what its consumers do, and
Postgres what waits. Exit code 1 if the service does not answer or something is
paused or out of reach.`,
		Args: exactly(0),
		RunE: with(opts, func(cmd *cobra.Command, _ []string, service *app.Service) error {
			cfg, err := opts.load()
			if err != nil {
				return err
			}

			var r report

			if r.Service, err = ask(cmd.Context(), cfg.HTTP.Addr); err != nil {
				r.Unreachable = err.Error()
			}

			// The service knows since when Postgres is away: that is told all the same.
			if err := r.askPostgres(cmd.Context(), service); err != nil {
				r.Away = err.Error()
			}

			if err := opts.print(cmd.OutOrStdout(), &r, r.write); err != nil {
				return err
			}

			return r.verdict()
		}),
	}
}

func (r *report) askPostgres(ctx context.Context, service *app.Service) error {
	facts, err := service.Facts(ctx)
	if err != nil {
		return err
	}

	r.Database = &facts
	r.Transaction, err = service.Janitor.Old(ctx)

	return err
}

const askTimeout = 3 * time.Second

// ask asks the running service.
func ask(ctx context.Context, addr string) (*app.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()

	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/statusz", nil)
	if err != nil {
		return nil, err
	}

	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, fmt.Errorf("no service answers at http.addr %s: %w", addr, err)
	}
	defer response.Body.Close()

	status := &app.Status{}
	if err := json.NewDecoder(response.Body).Decode(status); err != nil || response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("what answers at http.addr %s is no millrace: %s", addr, response.Status)
	}

	return status, nil
}

func (r *report) write(w io.Writer) {
	if s := r.Service; s != nil {
		fmt.Fprintf(w, "service\tup since %s, on %s\n", stamp(s.StartedAt), s.Brokers)
		fmt.Fprintln(w)
		fmt.Fprintln(w, "DEPENDENCY\tSTATE")

		for _, d := range s.Dependencies {
			state := "up"
			if !d.Up {
				state = fmt.Sprintf("unavailable since %s: %s", stamp(*d.Since), oneLine(d.Why, 200))
			}

			fmt.Fprintf(w, "%s\t%s\n", d.Name, state)
		}

		fmt.Fprintln(w)
		writeConsumers(w, s.Consumers)
	} else {
		fmt.Fprintf(w, "service\t%s\n", r.Unreachable)
	}

	if r.Database != nil {
		r.writeFacts(w, *r.Database)
	}

	if r.Away != "" {
		fmt.Fprintln(w, "\t")
		fmt.Fprintf(w, "postgres\t%s\n", oneLine(r.Away, 300))
	}
}

func (r *report) writeFacts(w io.Writer, d app.Facts) {
	if r.Service == nil {
		for _, p := range d.Paused {
			fmt.Fprintf(w, "%s\tpaused by %s since %s: %s\n", p.Consumer, p.Who, stamp(p.At), oneLine(p.Why, 100))
		}
	}

	oldest := ""

	if d.OldestDue != nil {
		oldest = ", the oldest since " + stamp(*d.OldestDue)
	}

	fmt.Fprintln(w)
	fmt.Fprintf(w, "outbox\t%d to publish%s; %d scheduled\n", d.OutboxDue, oldest, d.OutboxScheduled)
	fmt.Fprintf(w, "parked\t%d messages of %d keys\n", d.ParkedMessages, d.ParkedKeys)
	fmt.Fprintf(w, "poison\t%d open\n", d.PoisonOpen)

	if r.Transaction != nil {
		fmt.Fprintf(w, "vacuum\theld back by %s\n", describe(*r.Transaction))
	}
}

// errTroubled says that status found something that is not as it should be.
var errTroubled = errors.New("something is paused or out of reach; see above")

func (r *report) verdict() error {
	if r.Service == nil {
		return errors.New(r.Unreachable)
	}

	if r.Away != "" {
		return errTroubled
	}

	for _, d := range r.Service.Dependencies {
		if !d.Up {
			return errTroubled
		}
	}

	for _, c := range r.Service.Consumers {
		if c.Pause != nil || len(c.Waits) > 0 {
			return errTroubled
		}
	}

	return nil
}
