package main

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/app"
	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/shop/fulfilment"
	"github.com/millracehq/millrace/internal/shop/order"
)

// with runs fn with a service that is released afterwards.
func with(opts *options, fn func(cmd *cobra.Command, args []string, service *app.Service) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		service, release, err := opts.service()
		if err != nil {
			return err
		}
		defer release()

		return fn(cmd, args, service)
	}
}

func newOrders(opts *options) *cobra.Command {
	cmd := &cobra.Command{Use: "orders", Short: "Look at orders, and call them off", Args: exactly(0)}
	show := &cobra.Command{
		Use: "show ID", Short: "Show an order with its history", Args: exactly(1),
		RunE: with(opts, func(cmd *cobra.Command, args []string, service *app.Service) error {
			details, err := service.Orders.Show(cmd.Context(), args[0])
			if err != nil {
				return err
			}

			return opts.print(cmd.OutOrStdout(), details, func(w io.Writer) { writeOrder(w, details) })
		}),
	}

	var (
		status string
		limit  int
	)

	list := &cobra.Command{
		Use: "list", Short: "List the orders that changed last", Args: exactly(0),
		RunE: with(opts, func(cmd *cobra.Command, _ []string, service *app.Service) error {
			orders, err := service.Orders.List(cmd.Context(), order.Status(status), limit)
			if err != nil {
				return err
			}

			return opts.print(cmd.OutOrStdout(), orders, func(w io.Writer) {
				fmt.Fprintln(w, "ORDER\tSTATUS\tTOTAL\tCHANGED")

				for _, o := range orders {
					fmt.Fprintf(w, "%s\t%s\t%s %s\t%s\n", o.ID, o.Status, o.Total, o.Currency, stamp(o.UpdatedAt))
				}
			})
		}),
	}
	list.Flags().StringVar(&status, "status", "", "only orders in this state, for example completed")
	list.Flags().IntVar(&limit, "limit", 20, "how many")
	diagram := &cobra.Command{
		Use: "diagram", Short: "Draw the states of an order as a Mermaid diagram", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := io.WriteString(cmd.OutOrStdout(), fulfilment.Diagram())

			return err
		},
	}
	cmd.AddCommand(show, list, newCancel(opts), diagram)

	return cmd
}

func newCancel(opts *options) *cobra.Command {
	var reason string

	cmd := &cobra.Command{
		Use: "cancel ID", Short: "Ask to call an order off",
		Long: `Ask to call an order off, whatever it is waiting for: stock that it holds is
released, a payment is refunded. An order that is completed or ended otherwise
stays as it is: orders.cancel.refused says so.`,
		Args: exactly(1),
		RunE: with(opts, func(cmd *cobra.Command, args []string, service *app.Service) error {
			// The request may come before the order, but a person means one that is there.
			if _, err := service.Orders.Show(cmd.Context(), args[0]); err != nil {
				return err
			}

			payload, err := event.Encode(fulfilment.CancelRequested{OrderID: args[0], Reason: reason})
			if err != nil {
				return err
			}

			p := &publisher{service: service, keepIDs: true, result: publication{Topic: fulfilment.TopicCancelRequested, Rejected: []rejection{}}}
			if err := p.single(cmd.Context(), payload); err != nil {
				return err
			}

			return p.report(opts, cmd.OutOrStdout())
		}),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for people")

	return cmd
}

func writeOrder(w io.Writer, o order.Details) {
	fmt.Fprintf(w, "order\t%s\n", o.ID)
	fmt.Fprintf(w, "status\t%s\n", o.Status)
	fmt.Fprintf(w, "total\t%s %s\n", o.Total, o.Currency)

	for _, line := range o.Lines {
		fmt.Fprintf(w, "line\t%d x %s\n", line.Quantity, line.ProductID)
	}

	fmt.Fprintln(w, "history\t")

	for _, e := range o.History {
		fmt.Fprintf(w, "  %d\t%s\t%s\t%s\n", e.Version, e.Type, stamp(e.RecordedAt), e.Data)
	}
}

func newStock(opts *options) *cobra.Command {
	return &cobra.Command{
		Use: "stock [PRODUCT...]", Short: "Show the stock of products",
		RunE: with(opts, func(cmd *cobra.Command, args []string, service *app.Service) error {
			list, err := service.Inventory.List(cmd.Context(), args...)
			if err != nil {
				return err
			}

			return opts.print(cmd.OutOrStdout(), list, func(w io.Writer) {
				fmt.Fprintln(w, "PRODUCT\tAVAILABLE\tRESERVED\tSOLD")

				for _, s := range list {
					fmt.Fprintf(w, "%s\t%d\t%d\t%d\n", s.ProductID, s.Available, s.Reserved, s.Sold)
				}
			})
		}),
	}
}

func newMigrate(opts *options) *cobra.Command {
	cmd := &cobra.Command{Use: "migrate", Short: "Work on the schema of the database", Args: exactly(0)}

	printMigrations := func(cmd *cobra.Command, list []postgres.Migration) error {
		return opts.print(cmd.OutOrStdout(), list, func(w io.Writer) {
			fmt.Fprintln(w, "VERSION\tNAME\tAPPLIED")

			for _, m := range list {
				fmt.Fprintf(w, "%d\t%s\t%t\n", m.Version, m.Name, m.Applied)
			}
		})
	}

	cmd.AddCommand(&cobra.Command{
		Use: "up", Short: "Apply all pending migrations", Args: exactly(0),
		RunE: with(opts, func(cmd *cobra.Command, _ []string, service *app.Service) error {
			cfg, err := opts.load()
			if err != nil {
				return err
			}

			if _, err := postgres.Migrate(cmd.Context(), service.Pool, newLogger(cfg)); err != nil {
				return err
			}

			list, err := postgres.Migrations(cmd.Context(), service.Pool)
			if err != nil {
				return err
			}

			return printMigrations(cmd, list)
		}),
	}, &cobra.Command{
		Use: "status", Short: "List all migrations", Args: exactly(0),
		RunE: with(opts, func(cmd *cobra.Command, _ []string, service *app.Service) error {
			list, err := postgres.Migrations(cmd.Context(), service.Pool)
			if err != nil {
				return err
			}

			return printMigrations(cmd, list)
		}),
	})

	return cmd
}

func newConfig(opts *options) *cobra.Command {
	return &cobra.Command{
		Use: "config", Short: "Print the configuration in force, secrets hidden, and what is wrong with it", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := opts.load()
			if err != nil {
				return err
			}

			text, err := config.Print(cfg)
			if err != nil {
				return err
			}

			if opts.json {
				err = opts.print(cmd.OutOrStdout(), config.Redacted(cfg), nil)
			} else {
				_, err = fmt.Fprint(cmd.OutOrStdout(), text)
			}

			if err != nil {
				return err
			}

			if err := cfg.Validate(); err != nil {
				return usageError{fmt.Errorf("the configuration is not valid:\n%w", err)}
			}

			return nil
		},
	}
}

func newVersion(opts *options) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return opts.print(cmd.OutOrStdout(), map[string]string{"version": version}, func(w io.Writer) {
				fmt.Fprintln(w, version)
			})
		},
	}
}

func stamp(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05.000") }

// oneLine keeps terminals safe from what a message may contain.
func oneLine(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			return ' '
		}

		return r
	}, s)

	if runes := []rune(s); len(runes) > limit {
		return string(runes[:limit]) + "..."
	}

	return s
}
