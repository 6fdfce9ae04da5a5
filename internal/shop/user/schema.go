package user

import "github.com/danielgtaylor/huma/v2"

// TransformSchema implements huma.SchemaTransformer: all other fields become properties.
func (Update) TransformSchema(_ huma.Registry, s *huma.Schema) *huma.Schema {
	delete(s.Properties, "Properties")
	s.Required, s.MinProperties = nil, new(1)

	return s
}
