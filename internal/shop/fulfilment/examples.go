package fulfilment

import "embed"

// Examples holds an example of each payload of the order process, as JSON. A test writes
// them. The file orders.created.items.v1.json is a variant on topic orders.created.
//
//go:embed testdata/events
var Examples embed.FS
