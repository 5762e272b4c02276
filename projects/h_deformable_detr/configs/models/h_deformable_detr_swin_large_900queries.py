from .h_deformable_detr_swin_large import model

model.num_queries_one2one = 900
model.transformer.two_stage_num_proposals = 2400
