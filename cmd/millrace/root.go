package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/engine/terminal"
)

// newRoot returns the command line. All its output goes through a writer that escapes
// what a terminal would obey.
func newRoot(out, problems io.Writer) *cobra.Command {
	opts := &options{}
	root := group(opts, &cobra.Command{
		Use:   "millrace",
		Short: "Apply messages to Postgres exactly once in effect, in order per key",
		Long: `Millrace consumes topics from Kafka, RabbitMQ or Postgres alone, applies each
message to Postgres exactly once in effect, and publishes the events that follow.

The configuration comes from the defaults, the --config file, the environment
(MILLRACE_OUTBOX__BATCH_SIZE sets outbox.batch_size, and DATABASE_URL sets
postgres.url) and the flags; later sources win. If no database is configured,
commands use the one that "millrace dev" keeps in the working directory.

` + exitCodes(),
		Example: `  millrace dev
  millrace publish orders.created '{"order":{"id":"order_123","product_id":"product_1","quantity":2,"total_amount":99.99}}'
  millrace orders show order_123`,
		SilenceUsage:  true,
		SilenceErrors: true,
	},
		newServe, newDev, newPublish, newTail, newStock, newTrace, newStatus, newHealthcheck, newFailed, newRefused, newActivity, newAudit, newUpkeep, newConfig, newCompletion, newMan, newVersion,
		parent("orders", "Show and cancel orders", "orders list --status completed",
			newOrdersShow, newOrdersList, newOrdersCancel, newOrdersDiagram),
		parent("payments", "Compare payments with the gateway's record", "payments show order_123", newPaymentsShow, newPaymentsLedger),
		parent("users", "Show and erase users", "users show alice", newUsersShow, newUsersList, newUsersMisses, newUsersErase),
		parent("notifications", "Show notifications sent to users", "notifications list --user alice", newNotificationsList),
		parent("analytics", "Count user activity", "analytics top --days 7", newAnalyticsTop, newAnalyticsDaily),
		parent("events", "Read the event store", "events show order-order_123", newEventsShow, newEventsTail, newEventsExport),
		parent("projections", "Show and rebuild event store projections", "projections status",
			newProjectionsStatus, newProjectionsRebuild),
		parent("consumers", "List, pause and resume consumers", `consumers pause fulfilment.charge --why "the provider is down"`,
			newConsumersList, newConsumersPause, newConsumersResume),
		parent("tokens", "Create, list and revoke operator API tokens", "tokens create ci-deploy --role operator",
			newTokensCreate, newTokensList, newTokensRevoke),
		parent("docs", "Print the AsyncAPI and OpenAPI documents and the JSON Schemas", "docs asyncapi > asyncapi.json",
			newDocsAsyncAPI, newDocsOpenAPI, newDocsSchemas),
		parent("migrate", "Show and apply database migrations", "migrate up", newMigrateUp, newMigrateStatus))

	root.SetOut(terminal.NewWriter(out))
	root.SetErr(terminal.NewWriter(problems))

	flags := root.PersistentFlags()
	flags.StringVarP(&opts.file, "config", "c", "", "read the configuration from this file (YAML)")
	flags.StringVar(&opts.url, "database-url", "", "use this Postgres: postgres://user:password@host:5432/database")
	flags.StringVar(&opts.broker, "broker", "", "use this broker: embedded, kafka or rabbitmq")
	flags.StringVar(&opts.level, "log-level", "", "log at this level: debug, info, warn or error")
	flags.BoolVar(&opts.json, "json", false, "print JSON")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return event.Errorf(event.Invalid, "%v", err) })

	root.CompletionOptions.DisableDefaultCmd = true
	root.SetHelpCommand(newHelp(opts))
	complete(opts, root)

	return root
}

// exitCodes lists the exit codes for the help text.
func exitCodes() string {
	lines := []string{"Exit codes:"}
	for _, c := range operate.ExitCodes {
		lines = append(lines, fmt.Sprintf("  %d  %s", c.Code, c.Meaning))
	}

	return strings.Join(lines, "\n")
}
