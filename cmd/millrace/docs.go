package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/asyncapi"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// described is like operation, for a command that prints what the code says. It needs no
// database.
func described(opts *options, cmd *cobra.Command, fn func(*call) error, flags ...flag) *cobra.Command {
	return assembled(opts, cmd, func() (config.Config, error) {
		cfg, err := opts.load()
		cfg.Postgres.URL = cmp.Or(cfg.Postgres.URL, postgres.Secret("postgres://127.0.0.1/unused"))

		return cfg, err
	}, fn, flags...)
}

func newDocsAsyncAPI(opts *options) *cobra.Command {
	return described(opts, &cobra.Command{
		Use: "asyncapi", Short: "Print the AsyncAPI 3.0 document of all topics",
		Long: `Print the AsyncAPI 3.0 document of all topics, as JSON: who consumes and publishes
them, the JSON Schema of each payload, headers, examples, and the bindings of the
configured brokers. It comes from the code, and needs no database.`,
		Example: "  millrace docs asyncapi > asyncapi.json",
	}, func(c *call) error {
		document, err := c.Describe()
		if err != nil {
			return err
		}

		return c.printJSON(document)
	})
}

func newDocsOpenAPI(opts *options) *cobra.Command {
	return described(opts, &cobra.Command{
		Use: "openapi", Short: "Print the OpenAPI 3.1 document of the operator API", Example: "  millrace docs openapi > openapi.json",
	}, func(c *call) error { return c.printJSON(c.API.Description()) })
}

func newDocsSchemas(opts *options) *cobra.Command {
	var dir string

	return described(opts, &cobra.Command{
		Use: "schemas [TOPIC]", Short: "Print the JSON Schema of a payload, or of all",
		Long: `Print the JSON Schema of the payload of a topic, or an object with those of all
topics. With --dir, write one file per topic instead. Nothing is written if a schema
would break those who use the one that is there: a consumed topic must accept what it
accepted, and a published one must keep what readers rely on.`,
		Example: `  millrace docs schemas orders.created
  millrace docs schemas --dir docs/schemas`,
	}, func(c *call) error {
		payloads, err := asyncapi.Payloads(c.Router)
		if err != nil {
			return err
		}

		if dir != "" {
			if len(c.args) > 0 {
				return event.Errorf(event.Invalid, "--dir writes all schemas, expected no topic")
			}

			return asyncapi.Write(dir, payloads)
		}

		schemas := map[string]json.RawMessage{}
		for _, p := range payloads {
			schemas[p.Topic] = p.Schema
		}

		if len(c.args) == 0 {
			return c.printJSON(schemas)
		}

		schema, known := schemas[c.args[0]]
		if !known {
			return event.UnknownName("topic", c.args[0], slices.Sorted(maps.Keys(schemas)))
		}

		return c.printJSON(schema)
	}, text(&dir, "dir", "", "write the schemas to this folder"))
}

// printJSON prints a document, with and without --json.
func (c *call) printJSON(document any) error {
	encoded, err := json.MarshalIndent(document, "", "  ")
	if err != nil {
		return fmt.Errorf("writing the document: %w", err)
	}

	_, err = io.WriteString(c.out(), string(encoded)+"\n")

	return err
}
