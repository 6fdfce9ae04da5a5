package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/shop/user"
)

func newUsersShow(opts *options) *cobra.Command {
	return query(opts, &cobra.Command{
		Use: "show USER", Short: "Show a user and their history", Example: "  millrace users show alice",
	}, func(c *call) (user.Details, error) { return c.ShowUser(c.ctx, c.args[0]) }, writeUser)
}

func writeUser(w io.Writer, u user.Details) {
	row(w, "user", u.ID)

	if u.Erased {
		row(w, "erased", "yes")
	} else {
		row(w, "name", u.Name)
		row(w, "email", u.Email)
	}

	for _, name := range u.Properties.Names() {
		row(w, name, string(u.Properties[name]))
	}

	fmt.Fprintln(w, "history\t")

	for _, e := range u.History {
		data, _ := json.Marshal(e.Data)
		fmt.Fprintf(w, "  %d\t%s\t%s\t%s\n", e.Version, e.Type, stamp(e.RecordedAt), oneLine(string(data), 200))
	}
}
