-- Cells are no sections: contents have every heading, nested, each with an id of its own.
local seen = {}
function Div(div) return div.content end
function Header(header)
  local name = header.identifier
  seen[name] = (seen[name] or 0) + 1
  if seen[name] > 1 then header.identifier = name .. "-" .. seen[name] end
  return header
end
if FORMAT == "typst" then -- the PDF shows its own figures, and links to the web alone
  function Image() return {} end
  function Link(link) if not link.target:match("^https?://") then return link.content end end
end
