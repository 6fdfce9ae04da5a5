package fulfilment

import "github.com/danielgtaylor/huma/v2"

// TransformSchema implements huma.SchemaTransformer: an order has one product, or several
// items.
func (NewOrder) TransformSchema(_ huma.Registry, s *huma.Schema) *huma.Schema {
	s.OneOf = []*huma.Schema{
		{
			Title: "one product", Required: []string{"product_id", "quantity"}, Properties: map[string]*huma.Schema{
				"product_id": {Type: huma.TypeString, MinLength: new(1)}, "quantity": {Type: huma.TypeInteger},
				"items": {Type: huma.TypeArray, Nullable: true, MaxItems: new(0)},
			},
		},
		{
			Title: "several items", Required: []string{"items"}, Properties: map[string]*huma.Schema{
				"items":      {Type: huma.TypeArray, MinItems: new(1)},
				"product_id": {Type: huma.TypeString, Nullable: true, MaxLength: new(0)}, "quantity": {Type: "null"},
			},
		},
	}

	return s
}
