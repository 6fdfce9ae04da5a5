package main

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/millracehq/millrace"
	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/shop/audit"
	"github.com/millracehq/millrace/internal/shop/order"
)

var shells = map[string]func(*call) error{
	"bash":       func(c *call) error { return c.cmd.Root().GenBashCompletionV2(c.out(), true) },
	"fish":       func(c *call) error { return c.cmd.Root().GenFishCompletion(c.out(), true) },
	"powershell": func(c *call) error { return c.cmd.Root().GenPowerShellCompletionWithDesc(c.out()) },
	"zsh":        func(c *call) error { return c.cmd.Root().GenZshCompletion(c.out()) },
}

func newCompletion(opts *options) *cobra.Command {
	return command(opts, &cobra.Command{
		Use: "completion SHELL", Short: "Print a completion script for bash, fish, powershell or zsh",
		Example: "  source <(millrace completion bash)",
	}, func(c *call) error {
		if err := event.KnownName("shell", c.args[0], sortedKeys(shells)); err != nil {
			return err
		}

		return shells[c.args[0]](c)
	})
}

// completionTimeout bounds a database lookup: a shell must not hang.
const completionTimeout = time.Second

// fixed completes one of names.
func fixed[N ~string](names ...N) func(*call) ([]string, error) {
	return func(*call) ([]string, error) {
		return postgres.Column(names, func(n N) string { return string(n) }), nil
	}
}

// named completes the names of parts of the service, which need no database.
func named(names func(*call) []string) func(*call) ([]string, error) {
	return func(c *call) ([]string, error) { return names(c), nil }
}

// stored completes values in the database: those of the last 100 rows of a query.
func stored(sql string, args ...any) func(*call) ([]string, error) {
	return func(c *call) ([]string, error) {
		return postgres.Collect(c.ctx, c.Pool, pgx.RowTo[string], sql+" LIMIT 100", args...)
	}
}

// failedIDs completes the ids of failed messages in a state, with their topics.
func failedIDs(states ...failed.State) func(*call) ([]string, error) {
	return stored(`SELECT id || E'\t' || topic FROM failed_messages WHERE state = ANY($1) ORDER BY id DESC`,
		postgres.Column(states, func(s failed.State) string { return string(s) }))
}

// groups completes the ids of groups of failed messages, with their causes.
var groups = stored(`SELECT group_id || E'\t' || max(cause) FROM failed_messages WHERE group_id <> '' GROUP BY group_id ORDER BY max(last_at) DESC`)

// completions maps flags, and arguments by their names in the usage lines, to the
// functions that complete them. A name preceded by a command's path takes precedence
// over the name alone.
var completions = map[string]func(*call) ([]string, error){
	"SHELL":      fixed(sortedKeys(shells)...),
	"CONSUMER":   named(func(c *call) []string { return c.Operator.ConsumerNames() }),
	"TOPIC":      named(func(c *call) []string { return c.Operator.Topics() }),
	"PROJECTION": named(func(c *call) []string { return c.Projector.Names() }),
	"ORDER":      stored(`SELECT id FROM orders ORDER BY updated_at DESC`),
	"USER":       stored(`SELECT id FROM users ORDER BY updated_at DESC`),
	"PRODUCT":    stored(`SELECT product_id FROM stock ORDER BY product_id`),
	"STREAM":     stored(`SELECT stream FROM events GROUP BY stream ORDER BY max(position) DESC`),
	"EVENT":      stored(`SELECT DISTINCT event FROM analytics_daily ORDER BY event`),
	"ID":         failedIDs(failed.Waiting, failed.Stopped),

	"millrace failed show ID":    failedIDs(failed.Waiting, failed.Stopped, failed.Resolved),
	"millrace failed export ID":  failedIDs(failed.Waiting, failed.Stopped, failed.Resolved),
	"millrace failed edit ID":    failedIDs(failed.Stopped),
	"millrace failed requeue ID": failedIDs(failed.Stopped),
	"millrace failed discard ID": failedIDs(failed.Stopped),
	"millrace failed retry ID":   failedIDs(failed.Waiting),
	"millrace failed skip ID":    failedIDs(failed.Waiting),
	"millrace failed waiting ID": failedIDs(failed.Waiting),

	"--consumer":  named(func(c *call) []string { return c.Operator.ConsumerNames() }),
	"--topic":     named(func(c *call) []string { return c.Operator.Topics() }),
	"--reason":    fixed(event.Reasons...),
	"--state":     fixed(operate.States...),
	"--status":    fixed(order.Statuses...),
	"--action":    fixed(activity.Kinds...),
	"--broker":    fixed(broker.Embedded, broker.Kafka, broker.RabbitMQ),
	"PROBE":       fixed(sortedKeys(probes)...),
	"--role":      fixed(access.Roles...),
	"--log-level": fixed("debug", "info", "warn", "error"),
	"--only":      fixed(audit.Names()...),
	"--failed":    failedIDs(failed.Waiting, failed.Stopped, failed.Resolved),
	"--user":      stored(`SELECT id FROM users ORDER BY updated_at DESC`),
	"--group":     groups,
	"GROUP":       groups,

	"millrace tokens revoke NAME": stored(`SELECT name FROM api_tokens WHERE revoked_at IS NULL ORDER BY created_at DESC`),

	"millrace failed count --by": fixed(failed.Countable...),
}

// complete sets up completion for the arguments and flags of cmd and its subcommands.
func complete(opts *options, cmd *cobra.Command) {
	words := strings.Fields(cmd.Use)[1:]
	for i := range words {
		words[i] = strings.Trim(words[i], "[.]")
	}

	if cmd.Runnable() && !cmd.HasSubCommands() && cmd.Name() != "help" {
		cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			if len(words) == 0 || len(args) >= len(words) && !strings.HasSuffix(cmd.Use, "...]") {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}

			return opts.complete(cmd, words[min(len(args), len(words)-1)], args, prefix)
		}
	}

	add := func(f *pflag.Flag) {
		if name := "--" + f.Name; f.Value.Type() != "bool" && f.Name != "config" && f.Name != "file" {
			// The only possible error is that the flag already has a function.
			_ = cmd.RegisterFlagCompletionFunc(f.Name, func(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
				return opts.complete(cmd, name, nil, prefix)
			})
		}
	}

	cmd.LocalFlags().VisitAll(add)

	for _, child := range cmd.Commands() {
		complete(opts, child)
	}
}

// complete returns the values that begin with prefix, except those that are already
// among the arguments. Without a database, it completes only names that need none.
func (o *options) complete(cmd *cobra.Command, name string, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	values := completions[cmd.CommandPath()+" "+name]
	if values == nil {
		values = completions[name]
	}

	if values == nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}

	cfg, err := o.clientConfig()
	if err != nil || cfg.Validate() != nil {
		cfg = config.Default()
		cfg.Postgres.URL = "postgres://127.0.0.1:1/none" // nothing connects before the first query
	}

	service, release, err := millrace.New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	defer release()

	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()

	found, err := values(&call{options: o, Service: service, cfg: cfg, ctx: ctx, cmd: cmd})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}

	// Several values of one flag are separated by commas.
	start := strings.LastIndex(prefix, ",") + 1
	args = append(slices.Clone(args), strings.Split(prefix[:start], ",")...)

	var matching []string

	for _, value := range found {
		id, _, _ := strings.Cut(value, "\t")
		if strings.HasPrefix(id, prefix[start:]) && !slices.Contains(args, id) {
			matching = append(matching, prefix[:start]+value)
		}
	}

	return matching, cobra.ShellCompDirectiveNoFileComp
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
