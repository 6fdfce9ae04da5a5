package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace"
	"github.com/millracehq/millrace/internal/app"
	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/localpg"
	"github.com/millracehq/millrace/internal/telemetry"
)

// devDir is where `millrace dev` keeps its Postgres, below the working
// directory. Other commands find it there when no database is configured.
const devDir = ".local/postgres"

// options are the flags that every command has.
type options struct {
	file   string
	url    string
	broker string
	level  string
	json   bool
}

func newRoot() *cobra.Command {
	opts := &options{}
	root := &cobra.Command{
		Use:   "millrace",
		Short: "Apply each message to Postgres exactly once in effect, in order per key, and publish what follows",
		Long: `Millrace consumes topics from Kafka, RabbitMQ or Postgres alone, applies each
message to Postgres exactly once in effect, and publishes what follows.

Configuration comes from defaults, then --config, then the environment
(MILLRACE_OUTBOX__BATCH_SIZE sets outbox.batch_size; DATABASE_URL is honoured),
then flags. Without a database, commands use the one of "millrace dev" in the
working directory.

Exit codes: 0 done, 1 failed or the audit found something, 2 wrong usage or
configuration, 3 not found, 4 some messages were rejected or refused.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("there is no command %s: `millrace help` lists them", args[0])}
			}

			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}

	flags := root.PersistentFlags()
	flags.StringVarP(&opts.file, "config", "c", "", "configuration file (YAML)")
	flags.StringVar(&opts.url, "database-url", "", "Postgres to use, as postgres://user:password@host:5432/database")
	flags.StringVar(&opts.broker, "broker", "", "embedded, kafka or rabbitmq")
	flags.StringVar(&opts.level, "log-level", "", "debug, info, warn or error")
	flags.BoolVar(&opts.json, "json", false, "print JSON")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })

	root.AddCommand(newServe(opts), newDev(opts), newPublish(opts), newOrders(opts), newStock(opts), newPayments(opts),
		newUsers(opts), newNotifications(opts), newAnalytics(opts), newEvents(opts), newProjections(opts), newTrace(opts),
		newStatus(opts), newConsumers(opts), newParked(opts), newPoison(opts), newAudit(opts), newMaintenance(opts), newMigrate(opts),
		newConfig(opts), newVersion(opts))

	return root
}

// load reads the configuration without validating it.
func (o *options) load() (config.Config, error) {
	overrides := map[string]any{}

	for key, value := range map[string]string{"postgres.url": o.url, "broker.kind": o.broker, "log.level": o.level} {
		if value != "" {
			overrides[key] = value
		}
	}

	cfg, err := config.Load(o.file, overrides)
	if err != nil {
		return cfg, usageError{err}
	}

	cfg.Poison.Release = version

	return cfg, nil
}

// service assembles a service for a command that works beside a running one.
func (o *options) service() (*app.Service, func(), error) {
	cfg, err := o.load()
	if err != nil {
		return nil, nil, err
	}

	if cfg.Postgres.URL == "" {
		server, err := localpg.Find(devDir)
		if err != nil {
			return nil, nil, usageError{errors.New("no database: start `millrace dev` in this directory, or set DATABASE_URL or --database-url")}
		}

		cfg.Postgres.URL = postgres.Secret(server.URL())
	}

	cfg.Postgres.MaxConns = 4

	return assemble(cfg)
}

func assemble(cfg config.Config) (*app.Service, func(), error) {
	if err := cfg.Validate(); err != nil {
		return nil, nil, usageError{fmt.Errorf("the configuration is not valid:\n%w", err)}
	}

	return millrace.New(cfg, newLogger(cfg))
}

func newLogger(cfg config.Config) *slog.Logger { return telemetry.NewLogger(cfg.Log, os.Stderr) }

// print writes v as JSON, or lets text write it for people.
func (o *options) print(w io.Writer, v any, text func(w io.Writer)) error {
	if o.json {
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		encoder.SetEscapeHTML(false)

		return encoder.Encode(v)
	}

	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	text(table)

	return table.Flush()
}

// exactly is cobra.ExactArgs with an error that counts as wrong usage.
func exactly(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := cobra.ExactArgs(n)(cmd, args); err != nil {
			return usageError{fmt.Errorf("%w: usage: %s", err, cmd.UseLine())}
		}

		return nil
	}
}

// countFlag adds a flag that takes a number from 1 to highest.
func countFlag(cmd *cobra.Command, to *int, name string, value, highest int, usage string) {
	*to = value
	cmd.Flags().Var(count{to: to, highest: highest}, name, usage)
}

// count implements pflag.Value.
type count struct {
	to      *int
	highest int
}

func (c count) String() string {
	if c.to == nil {
		return ""
	}

	return strconv.Itoa(*c.to)
}

func (count) Type() string { return "int" }

func (c count) Set(text string) error {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > c.highest {
		return fmt.Errorf("expected a number from 1 to %d", c.highest)
	}

	*c.to = n

	return nil
}
