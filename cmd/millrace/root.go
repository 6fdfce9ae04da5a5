package main

import (
	"github.com/spf13/cobra"
)

func newRoot() *cobra.Command {
	opts := &options{}
	root := group(opts, &cobra.Command{
		Use:   "millrace",
		Short: "Apply each message to Postgres exactly once in effect, in order per key, and publish what follows",
		Long: `Millrace consumes topics from Kafka, RabbitMQ or Postgres alone, applies each
message to Postgres exactly once in effect, and publishes what follows.

The configuration comes from the defaults, then --config, then the environment
(MILLRACE_OUTBOX__BATCH_SIZE sets outbox.batch_size; DATABASE_URL is honoured),
then the flags. Without a database, commands use the one that "millrace dev"
keeps in the working directory.

Exit codes: 0 done, 1 failed or the audit found violations, 2 wrong usage or
configuration, 3 not found, 4 some messages were rejected or refused.`,
		Example: `  millrace dev
  millrace publish orders.created '{"order":{"id":"order_123","product_id":"product_1","quantity":2,"total_amount":99.99}}'
  millrace orders show order_123`,
		SilenceUsage:  true,
		SilenceErrors: true,
	},
		newServe, newDev, newPublish, newTail, newOrders, newStock, newPayments, newUsers, newNotifications, newAnalytics,
		newEvents, newProjections, newTrace, newStatus, newConsumers, newFailed, newActivity, newAudit, newUpkeep,
		newMigrate, newConfig, newVersion)

	flags := root.PersistentFlags()
	flags.StringVarP(&opts.file, "config", "c", "", "read the configuration from this file (YAML)")
	flags.StringVar(&opts.url, "database-url", "", "use this Postgres: postgres://user:password@host:5432/database")
	flags.StringVar(&opts.broker, "broker", "", "use this broker: embedded, kafka or rabbitmq")
	flags.StringVar(&opts.level, "log-level", "", "log at this level: debug, info, warn or error")
	flags.BoolVar(&opts.json, "json", false, "print JSON")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })

	return root
}
